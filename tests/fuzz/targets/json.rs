//! An object's fields as they were written, repeated ones too.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// An object of the fields that lines name. Bytes that are changed at random seldom leave
/// JSON, so this is how most of it comes about. The first byte of a line chooses the name, the
/// second what the rest stands for.
pub fn compose(lines: &[u8], names: &[&str]) -> String {
    let fields: Vec<String> = lines
        .split(|b| *b == b'\n')
        .filter_map(|line| {
            let [name, kind, rest @ ..] = line else { return None };
            let name = names[usize::from(*name) % names.len()];
            let rest = String::from_utf8_lossy(rest);
            let value = match kind % 4 {
                0 | 1 => Value::from(rest).to_string(),
                2 => rest.into_owned(),
                _ => "null".to_owned(),
            };
            Some(format!("\"{name}\":{value}"))
        })
        .collect();
    format!("{{{}}}", fields.join(","))
}

pub struct Fields(pub Vec<(String, Box<RawValue>)>);

impl Fields {
    /// `None` when the text is no JSON object.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// All values of a field; one that cannot be represented is an error.
    pub fn all(&self, name: &str) -> Vec<Result<Value, serde_json::Error>> {
        let values = self.0.iter().filter(|(known, _)| known == name);
        values.map(|(_, value)| serde_json::from_str(value.get())).collect()
    }

    /// The text of a field, `None` where it is absent or null.
    ///
    /// # Errors
    /// When it stands twice, or is no text.
    pub fn text(&self, name: &str) -> Result<Option<String>, ()> {
        match &*self.all(name) {
            [] | [Ok(Value::Null)] => Ok(None),
            [Ok(Value::String(text))] => Ok(Some(text.clone())),
            _ => Err(()),
        }
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Fields;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        input.deserialize_map(Reader)
    }
}
