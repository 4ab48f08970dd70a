//! Formulas of a claims file: numbers, names, `+ - * / ^`, parentheses, `min` and `max` of two.

use std::collections::BTreeMap;

/// Nested parentheses and signs that are followed; more is a mistake, or made to do harm.
const MAX_DEPTH: u32 = 64;

/// What a formula comes to with these values.
///
/// # Errors
/// It does not parse, names an unknown value, or comes to no finite number; the message says where.
pub fn evaluate(text: &str, values: &BTreeMap<String, f64>) -> Result<f64, String> {
    let mut parser = Parser { text, at: 0, values, depth: 0 };
    let value = parser.sum()?;
    parser.skip();
    if parser.at < text.len() {
        return Err(parser.error("the formula should end"));
    }
    if value.is_finite() { Ok(value) } else { Err(format!("'{text}' comes to {value}")) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    values: &'a BTreeMap<String, f64>,
    depth: u32,
}

impl Parser<'_> {
    fn sum(&mut self) -> Result<f64, String> {
        let mut value = self.product()?;
        loop {
            if self.take('+') {
                value += self.product()?;
            } else if self.take('-') {
                value -= self.product()?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Result<f64, String> {
        let mut value = self.power()?;
        loop {
            if self.take('*') {
                value *= self.power()?;
            } else if self.take('/') {
                value /= self.power()?;
            } else {
                return Ok(value);
            }
        }
    }

    /// Binds to the right, and stronger than a sign in front of it, as mathematics has it.
    fn power(&mut self) -> Result<f64, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("the formula is too deep"));
        }
        let value = if self.take('-') {
            -self.power()?
        } else {
            let base = self.atom()?;
            if self.take('^') { base.powf(self.power()?) } else { base }
        };
        self.depth -= 1;
        Ok(value)
    }

    fn atom(&mut self) -> Result<f64, String> {
        if self.take('(') {
            let value = self.sum()?;
            return self.close(value);
        }
        let word = self.word();
        match word.chars().next() {
            None => Err(self.error("a number, a name or '(' should stand")),
            Some(c) if c.is_ascii_digit() || c == '.' => {
                word.parse().map_err(|_| self.error(&format!("'{word}' is no number, it ends")))
            }
            Some(_) if word == "min" || word == "max" => self.of_two(word == "min"),
            Some(_) => self.values.get(&word).copied().ok_or_else(|| {
                let known: Vec<&str> = self.values.keys().map(String::as_str).collect();
                format!("'{word}' in '{}' is no value; there are {}", self.text, known.join(", "))
            }),
        }
    }

    fn of_two(&mut self, least: bool) -> Result<f64, String> {
        if !self.take('(') {
            return Err(self.error("'(' should stand"));
        }
        let a = self.sum()?;
        if !self.take(',') {
            return Err(self.error("',' should stand"));
        }
        let b = self.sum()?;
        self.close(if least { a.min(b) } else { a.max(b) })
    }

    fn close(&mut self, value: f64) -> Result<f64, String> {
        if self.take(')') { Ok(value) } else { Err(self.error("')' should stand")) }
    }

    /// A name, or a number with its exponent.
    fn word(&mut self) -> String {
        self.skip();
        let rest = &self.text[self.at..];
        let number = rest.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        let mut before = ' ';
        let inside = |c: char| {
            let sign = number && (c == '-' || c == '+') && (before == 'e' || before == 'E');
            before = c;
            c.is_ascii_alphanumeric() || c == '_' || c == '.' || sign
        };
        let mut inside = inside;
        let end = rest.find(|c| !inside(c)).unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_string()
    }

    fn take(&mut self, wanted: char) -> bool {
        self.skip();
        let found = self.text[self.at..].starts_with(wanted);
        self.at += if found { wanted.len_utf8() } else { 0 };
        found
    }

    fn skip(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn error(&self, what: &str) -> String {
        format!("{what} at character {} of '{}'", self.at + 1, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<f64, String> {
        evaluate(text, &BTreeMap::from([("a".into(), 6.0), ("b_2".into(), 3.0)]))
    }

    #[test]
    fn arithmetic_is_as_usual() {
        for (text, value) in [
            ("1 + 2 * 3", 7.0),
            ("(1 + 2) * 3", 9.0),
            ("a / b_2 / 2", 1.0),
            ("7 - 2 - 1", 4.0),
            ("2 ^ 3 ^ 2", 512.0),
            ("-2 ^ 2", -4.0),
            ("2 * -a", -12.0),
            ("3.12e2 / 2E+0 - 1e-1", 155.9),
            ("min(a, b_2) + max(1, 2)", 5.0),
        ] {
            assert_eq!(of(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (text, told) in [
            ("", "at character 1"),
            ("1 +", "at character 4"),
            ("(1", "')' should stand"),
            ("1 2", "the formula should end at character 3"),
            ("c * 2", "'c' in 'c * 2' is no value; there are a, b_2"),
            ("1.2.3", "no number"),
            ("1 / 0", "comes to inf"),
            ("min(1)", "',' should stand"),
            ("ä", "at character 1"),
            (&"(".repeat(5000), "too deep"),
            (&"-".repeat(5000), "too deep"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
