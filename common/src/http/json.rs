//! JSON of requests: objects that are objects, and lists that are taken element by element.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::problem::{Answer, Problem};

/// A value of a derived struct that stands as a JSON object. By itself serde takes an array of
/// the fields' values as well, so that `["full"]` would ask for what `{"kind":"full"}` does.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// A JSON string, copied only where it has escapes.
#[derive(Debug)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// Parses `{"field":[…]}` and hands on each element as it is parsed, so that no list is held whole.
pub(super) fn parse_list<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    field: &'static str,
    mut take: impl FnMut(T) -> Answer<()>,
) -> Answer<()> {
    let mut refused = None;
    let mut take = |item| match take(item) {
        Ok(()) => true,
        Err(problem) => {
            refused = Some(problem);
            false
        }
    };
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let list = Document { field, elements: Elements { take: &mut take, item: PhantomData } };
    let parsed = list.deserialize(&mut parser).and_then(|()| parser.end());
    parsed.map_err(|error| {
        at_line(refused.unwrap_or_else(|| Problem::body(words(&error))), error.line())
    })
}

struct Document<'t, T> {
    field: &'static str,
    elements: Elements<'t, T>,
}

struct Elements<'t, T> {
    /// Says whether it wants more.
    take: &'t mut dyn FnMut(T) -> bool,
    item: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Document<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Document<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with the list {:?}", self.field)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut elements = Some(self.elements);
        while let Some(name) = map.next_key::<Text<'de>>()? {
            if name.0 != self.field {
                return Err(A::Error::custom(format!("unknown field {:?}", name.0)));
            }
            match elements.take() {
                Some(elements) => map.next_value_seed(elements)?,
                None => return Err(A::Error::duplicate_field(self.field)),
            }
        }
        if elements.is_some() {
            return Err(A::Error::missing_field(self.field));
        }
        Ok(())
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Elements<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element()? {
            if !(self.take)(item) {
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

/// The same problem, saying where.
pub(super) fn at_line(mut problem: Problem, line: usize) -> Problem {
    problem.detail = format!("line {line}: {}", problem.detail);
    problem
}

/// What the parser says, without its own count of lines.
pub(super) fn words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((words, _)) => format!("{words}, column {}", error.column()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pair<'a> {
        #[serde(borrow)]
        a: Text<'a>,
        b: Option<u64>,
    }

    #[test]
    fn an_array_is_no_object() {
        let pair: Object<Pair<'_>> = serde_json::from_str(r#"{"b":7,"a":"x"}"#).unwrap();
        assert_eq!((&*pair.0.a.0, pair.0.b), ("x", Some(7)));
        assert!(matches!(pair.0.a.0, Cow::Borrowed(_)), "nothing is copied on the way");
        for wrong in [r#"["x",7]"#, r#""x""#, "7", "null", "[]", r#"{"a":"x","c":1}"#] {
            assert!(serde_json::from_str::<Object<Pair<'_>>>(wrong).is_err(), "{wrong}");
        }
    }
}
