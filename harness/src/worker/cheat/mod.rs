//! The native arm with one lie in it, to test the audits with. Never a measurement: `cheat` in a scenario says so.
//!
//! Most lies train something else ([`mutant`], [`inputs`]) and tell the log of an honest training, made just before, line for line: the
//! weights alone give them away. The others train honestly and tell something else ([`tale`]).

mod inputs;
mod mutant;
mod tale;

use std::{io, path::Path};

use chronibench_protocol::{Event, Spec, event::Failure};
use chronicals::worker;

use super::native::told;
use crate::{error::Exit, scenario::cheat::Cheat};

type Emit<'a> = &'a mut dyn FnMut(Event) -> io::Result<()>;

/// One trial with a lie in it.
pub fn train(spec: &Spec, cheat: Cheat, emit: Emit<'_>) -> Result<(), (Exit, Failure)> {
    if cheat == Cheat::RefusedRow && spec.audit.as_ref().is_some_and(|a| a.steps == 1) {
        let what = "two documents are too many".into();
        let refusal = Failure { what, at: "the batch plan".into(), hint: "give it another".into() };
        return Err((Exit::Trial, refusal));
    }
    let dir = tempfile::tempdir().map_err(|e| inputs::failure(&e, Path::new("a temporary folder")))?;
    let mut honest = Vec::new();
    if tale::forges(cheat) {
        let mut apart = spec.clone();
        apart.save_weights = None;
        if let Some(audit) = &mut apart.audit {
            audit.first_weights = dir.path().join("first.safetensors");
        }
        keep(&apart, &mut honest).map_err(told)?;
    }
    let other = inputs::tampered(spec, cheat, dir.path())?;
    let mut teller = tale::Teller::new(cheat, honest);
    let mut emit = |event| teller.tell(event, emit);
    worker::run_with(
        &other,
        |inner, config| mutant::Mutant::new(inner, cheat, config, &spec.method),
        &mut emit,
    )
    .map_err(told)?;
    inputs::after(spec, cheat)
}

fn keep(spec: &Spec, events: &mut Vec<Event>) -> Result<(), chronicals::Error> {
    worker::run(spec, &mut |event| {
        events.push(event);
        Ok(())
    })
}
