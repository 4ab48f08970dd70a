//! What templates expect of Python: how values print, `tojson`, and methods of strings, lists and mappings.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind, Output, State, Value,
    value::{Kwargs, ValueKind},
};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Levels of lists and mappings in one another that are written out; Python's own limit is of this kind.
const DEEPEST: usize = 200;

/// Pays for whatever is inside a value before it is written out. Values share their parts: a list that holds itself twice, forty times
/// over, is forty lists in memory and longer than any memory as text.
///
/// # Errors
/// There is no fuel for it, or it is nested too deeply.
pub(super) fn pay(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    state.consume_fuel(1 + value.as_str().map_or(0, |text| text.len() as u64 / BYTES_OF_FUEL))?;
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(());
    }
    if depth == DEEPEST {
        let what = format!("a value has more than {DEEPEST} lists or mappings in one another");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    let is_map = value.kind() == ValueKind::Map;
    for part in value.try_iter()? {
        pay(state, &part, depth + 1)?;
        if is_map {
            pay(state, &value.get_item(&part)?, depth + 1)?;
        }
    }
    Ok(())
}

/// Bytes of text that a unit of fuel pays for: the engine's own price of what it writes is a quarter.
const BYTES_OF_FUEL: u64 = 16;

/// Writes a value as `str()` gives it.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&display(state, value)?).map_err(Error::from),
    }
}

/// `str(value)`.
pub(super) fn display(state: &State, value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_string()),
        None if value.is_undefined() => Ok(String::new()),
        None => pay(state, value, 0).map(|()| repr(value)),
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> String {
    let all = |of: fn(&Value) -> Option<Vec<Value>>| of(value).unwrap_or_default();
    let items = |v: &Value| v.try_iter().ok().map(Iterator::collect::<Vec<_>>);
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
        }
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            format!("[{}]", all(items).iter().map(repr).collect::<Vec<_>>().join(", "))
        }
        ValueKind::Map => {
            let entry = |key: &Value| {
                let item = value.get_item(key).unwrap_or_default();
                format!("{}: {}", repr(key), repr(&item))
            };
            format!("{{{}}}", all(items).iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

/// A string as Python quotes it: single quotes, unless only those are inside.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                write!(out, "\\x{:02x}", c as u32).expect("a string")
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// A float as Python prints it: the shortest digits, exponents with a sign and two digits.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    let text = format!("{x:?}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
            format!("{}e{sign}{digits:0>2}", mantissa.strip_suffix(".0").unwrap_or(mantissa))
        }
        None => text,
    }
}

/// Jinja's test: `None` is not iterable, and what is undefined is empty.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Jinja's test: whatever has a length and can be indexed, so strings and mappings too.
pub(super) fn is_sequence(value: &Value) -> bool {
    let kind = value.kind();
    matches!(kind, ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

/// `json.dumps` with the arguments that Transformers passes on; not escaped for HTML, as Jinja's own filter is.
pub(super) fn tojson(state: &State, value: &Value, args: Kwargs) -> Result<String, Error> {
    pay(state, value, 0)?;
    let wrong = |what: String| Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
    let indent: Option<Value> = args.get("indent")?;
    let indent = match indent.filter(|v| !v.is_none()) {
        None => None,
        Some(v) => match v.as_str() {
            Some(text) => Some(text.to_string()),
            None => Some(" ".repeat(usize::try_from(v).map_err(|e| wrong(e.to_string()))?.min(LONGEST))),
        },
    };
    let separators: Option<Vec<String>> = args.get("separators")?;
    let default = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators.as_deref() {
        None => (default.to_string(), ": ".to_string()),
        Some([item, key]) if item.len().max(key.len()) <= LONGEST => (item.clone(), key.clone()),
        Some(_) => return Err(wrong(format!("separators are two, of {LONGEST} bytes at most"))),
    };
    let sort_keys = args.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ascii = args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    args.assert_all_used()?;
    let value = serde_json::to_value(value).map_err(|e| wrong(e.to_string()))?;
    let mut json = Json { state, out: String::new(), indent, item, key, sort_keys, ascii };
    json.value(&value, 0)?;
    Ok(json.out)
}

/// Bytes of a separator or an indent that counts spaces.
const LONGEST: usize = 64;

struct Json<'a> {
    state: &'a State<'a, 'a>,
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    ascii: bool,
}

impl Json<'_> {
    fn value(&mut self, value: &serde_json::Value, depth: usize) -> Result<(), Error> {
        use serde_json::Value as V;
        match value {
            V::Null => self.out.push_str("null"),
            V::Bool(b) => self.out.push_str(if *b { "true" } else { "false" }),
            V::Number(n) if n.is_f64() => self.out.push_str(&float(n.as_f64().unwrap_or_default())),
            V::Number(n) => self.out.push_str(&n.to_string()),
            V::String(text) => self.string(text),
            V::Array(list) if list.is_empty() => self.out.push_str("[]"),
            V::Array(list) => {
                self.out.push('[');
                for (i, element) in list.iter().enumerate() {
                    self.separate(i > 0, depth + 1)?;
                    self.value(element, depth + 1)?;
                }
                self.close(']', depth)?;
            }
            V::Object(map) if map.is_empty() => self.out.push_str("{}"),
            V::Object(map) => {
                self.out.push('{');
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| key.as_str());
                }
                for (i, (key, element)) in entries.into_iter().enumerate() {
                    self.separate(i > 0, depth + 1)?;
                    self.string(key);
                    self.out.push_str(&self.key);
                    self.value(element, depth + 1)?;
                }
                self.close('}', depth)?;
            }
        }
        Ok(())
    }

    fn separate(&mut self, follows: bool, depth: usize) -> Result<(), Error> {
        if follows {
            self.out.push_str(&self.item);
        }
        self.line(depth)
    }

    fn close(&mut self, bracket: char, depth: usize) -> Result<(), Error> {
        self.line(depth)?;
        self.out.push(bracket);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            self.state.consume_fuel((indent.len() * depth) as u64 / BYTES_OF_FUEL)?;
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        // The two agree on everything but characters beyond ASCII.
        let escaped = serde_json::to_string(text).expect("a string is JSON");
        for c in escaped.chars() {
            if self.ascii && !c.is_ascii() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(self.out, "\\u{unit:04x}").expect("a string");
                }
            } else {
                self.out.push(c);
            }
        }
    }
}

/// Methods of Python's strings, lists and mappings.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), Some(affix)) = (value.as_str(), args.first().and_then(Value::as_str)) {
        match name {
            "removeprefix" => return Ok(text.strip_prefix(affix).unwrap_or(text).into()),
            "removesuffix" => return Ok(text.strip_suffix(affix).unwrap_or(text).into()),
            _ => {}
        }
    }
    if matches!(name, "join" | "format") {
        args.iter().try_for_each(|arg| pay(state, arg, 0))?;
    }
    unknown_method_callback(state, value, name, args)
}
