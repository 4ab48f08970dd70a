//! What a device did, to what was asked of it. Both are in order: kernels of ours have their names, and what runs between two of
//! them are the products that were asked for between them.

use chronicals_kernels::gpu::{Activity, launch::UNITS, trace::Kind};

use super::{Call, CallKind, Span};
use crate::error::Error;

/// What was made of a device's activities.
#[derive(Debug, Default)]
pub struct Attributed {
    /// Kernels and fills.
    pub spans: Vec<Span>,
    /// Copies.
    pub copies: Vec<Activity>,
    /// What could not be told.
    pub notes: Vec<String>,
}

fn is_ours(kernel: &str) -> bool {
    UNITS.iter().any(|u| u.entries.contains(&kernel))
}

/// A kernel that adds up what the library's kernel before it left in parts. Kernels that leave parts have "splitK" in their
/// names as well.
fn is_part(kernel: &str) -> bool {
    kernel.to_lowercase().contains("reduce")
}

/// Ties activities to calls, both in the order in which they were made.
///
/// # Errors
/// Kernels are not those that were asked for.
pub fn attribute(calls: &[Call], activities: Vec<Activity>) -> Result<Attributed, Error> {
    let mut out = Attributed::default();
    let (mut kernels, mut fills) = (Vec::new(), Vec::new());
    for a in activities {
        match a.kind {
            Kind::Kernel => kernels.push(a),
            Kind::Fill => fills.push(a),
            Kind::Copy => out.copies.push(a),
        }
    }
    let mut rest = kernels.as_slice();
    let mut products: Vec<&Call> = Vec::new();
    for (i, call) in calls.iter().filter(|c| c.kind != CallKind::Fill).enumerate() {
        if call.kind == CallKind::Product {
            products.push(call);
            continue;
        }
        let between = rest.iter().take_while(|a| !is_ours(&a.name)).count();
        let (library, ours) = rest.split_at(between);
        let found = ours.first().filter(|a| a.name == call.name).ok_or_else(|| {
            let found = ours.first().map_or("nothing", |a| &a.name);
            Error::new(
                format!("{found} was seen where {} was asked for", call.name),
                format!("profile, call {i}"),
            )
            .hint("take --profile-by events")
        })?;
        out.library(&products, library)?;
        products.clear();
        out.spans.push(span(call, found));
        rest = &ours[1..];
    }
    if let Some(more) = rest.iter().find(|a| is_ours(&a.name)) {
        return Err(Error::new(format!("{} was seen, and not asked for", more.name), "profile, last call")
            .hint("take --profile-by events"));
    }
    out.library(&products, rest)?;
    out.fills(calls, fills);
    Ok(out)
}

fn span(call: &Call, a: &Activity) -> Span {
    Span::of(call, (a.start_ns, a.end_ns.max(a.start_ns))).seen(a)
}

impl Attributed {
    /// Kernels of the library, for the products between two kernels of ours.
    fn library(&mut self, products: &[&Call], kernels: &[Activity]) -> Result<(), Error> {
        if products.is_empty() && kernels.is_empty() {
            return Ok(());
        }
        let Some(first) = products.first() else {
            let what = format!("{} was seen where no product was asked for", kernels[0].name);
            return Err(Error::new(what, "profile").hint("take --profile-by events"));
        };
        // One kernel a product; or else the first of those that add up parts.
        let one_each = kernels.len() == products.len();
        let begins = |i: usize| i == 0 || one_each || !is_part(&kernels[i].name);
        let count = (0..kernels.len()).filter(|i| begins(*i)).count();
        let mut which = 0;
        for (i, a) in kernels.iter().enumerate() {
            which += usize::from(begins(i));
            if count == products.len() {
                let part = !begins(i);
                let of = span(products[which - 1], a);
                self.spans.push(Span { part, cost: of.cost.filter(|_| !part), ..of });
            } else {
                let name = a.name.clone();
                self.spans.push(Span { name, cost: None, ..span(first, a) });
            }
        }
        if count != products.len() {
            let note = format!(
                "{} kernels of the library for {} products from {} on could not be told apart",
                kernels.len(),
                products.len(),
                first.name
            );
            // Once, not for every block of every step.
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        Ok(())
    }

    /// Fills that were asked for, in order and by their bytes; others are the library's.
    fn fills(&mut self, calls: &[Call], fills: Vec<Activity>) {
        let mut asked = calls.iter().filter(|c| c.kind == CallKind::Fill).peekable();
        let bytes = |call: &Call| call.cost.map_or(0, |c| c.bytes);
        let mut of_library = 0;
        for a in fills {
            match asked.next_if(|call| bytes(call) == a.bytes) {
                Some(call) => self.spans.push(span(call, &a)),
                None => of_library += 1,
            }
        }
        let unseen = asked.count();
        if of_library > 0 {
            self.notes.push(format!("{of_library} fills that nobody asked for are left out"));
        }
        if unseen > 0 {
            self.notes.push(format!("{unseen} fills were not seen"));
        }
    }
}
