//! Settings by module, as PEFT's `rank_pattern` and `alpha_pattern` have them: the first key that matches counts, so their order is kept.

use std::{fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor},
    ser::SerializeMap,
};

/// A mapping from patterns to values, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Patterns<T>(Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Patterns<T> {
    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Patterns and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(pattern, value)| (pattern.as_str(), value))
    }

    /// The same patterns with other values.
    pub fn map<U>(&self, value: impl Fn(&T) -> U) -> Patterns<U> {
        Patterns(self.0.iter().map(|(pattern, v)| (pattern.clone(), value(v))).collect())
    }
}

impl<T> FromIterator<(String, T)> for Patterns<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(self.0.len()))?;
        self.0.iter().try_for_each(|(pattern, value)| map.serialize_entry(pattern, value))?;
        map.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(Pairs(PhantomData))
    }
}

struct Pairs<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Pairs<T> {
    type Value = Patterns<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping from patterns of modules to values")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Patterns<T>, M::Error> {
        let mut pairs: Vec<(String, T)> = Vec::new();
        while let Some((pattern, value)) = map.next_entry::<String, T>()? {
            if pairs.iter().any(|(known, _)| *known == pattern) {
                return Err(M::Error::custom(format!("'{pattern}' is there twice")));
            }
            pairs.push((pattern, value));
        }
        Ok(Patterns(pairs))
    }
}

impl<T: JsonSchema> JsonSchema for Patterns<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Patterns_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        std::collections::BTreeMap::<String, T>::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_keys_are_there_once() {
        let patterns: Patterns<usize> = serde_json::from_str(r#"{"z": 1, "a": 2}"#).unwrap();
        assert_eq!(patterns.iter().collect::<Vec<_>>(), [("z", &1), ("a", &2)]);
        assert_eq!(serde_json::to_string(&patterns).unwrap(), r#"{"z":1,"a":2}"#);
        let twice = serde_json::from_str::<Patterns<usize>>(r#"{"z": 1, "z": 2}"#);
        assert!(twice.unwrap_err().to_string().contains("twice"));
        assert!(Patterns::<usize>::default().is_empty());
    }
}
