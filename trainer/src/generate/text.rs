//! Text of tokens that come one by one.

/// Turns ids into text as they come. A token may be a part of a character, or have a blank in front of it only behind another: the
/// text of some tokens is what they add to that of the ones before.
pub struct Text<D> {
    decode: D,
    ids: Vec<u32>,
    /// From where on ids are decoded, and up to where their text is given out.
    from: usize,
    given: usize,
}

impl<E, D: FnMut(&[u32]) -> Result<String, E>> Text<D> {
    /// Decodes by a function.
    pub fn new(decode: D) -> Self {
        Self { decode, ids: Vec::new(), from: 0, given: 0 }
    }

    /// What a token adds; nothing while a character is not complete.
    ///
    /// # Errors
    /// The function's.
    pub fn push(&mut self, id: u32) -> Result<String, E> {
        self.ids.push(id);
        let (before, now) = self.both()?;
        if now.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.from = self.given;
        self.given = self.ids.len();
        Ok(added(&before, &now))
    }

    /// What was held back.
    ///
    /// # Errors
    /// The function's.
    pub fn finish(mut self) -> Result<String, E> {
        let (before, now) = self.both()?;
        Ok(added(&before, &now))
    }

    fn both(&mut self) -> Result<(String, String), E> {
        let before = (self.decode)(&self.ids[self.from..self.given])?;
        Ok((before, (self.decode)(&self.ids[self.from..])?))
    }
}

fn added(before: &str, now: &str) -> String {
    now.strip_prefix(before).unwrap_or(now).to_string()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Ids are bytes.
    fn decode(ids: &[u32]) -> Result<String, Infallible> {
        let bytes: Vec<u8> = ids.iter().map(|id| *id as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    #[test]
    fn characters_come_whole() {
        let mut text = Text::new(decode);
        let parts: Vec<String> = "aé€😀z".bytes().map(|b| text.push(b.into()).unwrap()).collect();
        assert_eq!(parts, ["a", "", "é", "", "", "€", "", "", "", "😀", "z"]);
        assert_eq!(text.finish().unwrap(), "");
    }

    #[test]
    fn what_never_becomes_a_character_comes_in_the_end() {
        let mut text = Text::new(decode);
        let parts = [b'a', 0xf0, 0x9f].map(|b| text.push(b.into()).unwrap());
        assert_eq!(parts, ["a", "", ""]);
        assert_eq!(text.finish().unwrap(), "\u{fffd}");
    }
}
