//! `if-match` and `if-none-match` (RFC 9110, section 13.1) against the seq of an entry.

use http::header::{self, HeaderMap, HeaderName};

use super::problem::{Answer, Problem};
use crate::types::Seq;

/// Etags of an `if-match` or `if-none-match`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    Any,
    List(Vec<Tag>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tag {
    strength: Strength,
    opaque: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strength {
    Strong,
    Weak,
}

/// The conditions of a request on the current state of its key (RFC 9110, section 13.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    matches: Option<Tags>,
    matches_none: Option<Tags>,
}

/// Which condition failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// `if-match`
    Match,
    /// `if-none-match`
    NoneMatch,
}

impl Conditions {
    /// The conditions in these headers.
    ///
    /// # Errors
    /// `invalid_argument` for a list that is not of the form of RFC 9110.
    pub fn parse(headers: &HeaderMap) -> Answer<Self> {
        Ok(Self {
            matches: tags(headers, &header::IF_MATCH)?,
            matches_none: tags(headers, &header::IF_NONE_MATCH)?,
        })
    }

    /// Refuses conditions where nothing would judge them: to ignore them would be to lose updates.
    ///
    /// # Errors
    /// `invalid_argument`, naming the header.
    pub fn refuse(headers: &HeaderMap) -> Answer<()> {
        let given = [header::IF_MATCH, header::IF_NONE_MATCH];
        match given.into_iter().find(|name| headers.contains_key(name)) {
            Some(name) => {
                let what = "this route has no conditions; use PUT or DELETE of the key";
                Err(Problem::argument(name.as_str(), what))
            }
            None => Ok(()),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.matches.is_none() && self.matches_none.is_none()
    }

    /// The condition that the entry's state fails; `None` where all hold.
    ///
    /// `current` is the seq of the live entry, if there is one. `if-match` compares strongly (a
    /// weak tag never matches), `if-none-match` weakly.
    pub fn failed(&self, current: Option<Seq>) -> Option<Failed> {
        if let Some(tags) = &self.matches
            && !tags.hit(current, |tag| tag.strength == Strength::Strong)
        {
            return Some(Failed::Match);
        }
        if let Some(tags) = &self.matches_none
            && tags.hit(current, |_| true)
        {
            return Some(Failed::NoneMatch);
        }
        None
    }
}

impl Tags {
    fn hit(&self, current: Option<Seq>, counts: impl Fn(&Tag) -> bool) -> bool {
        let Some(seq) = current else { return false };
        match self {
            Self::Any => true,
            Self::List(tags) => {
                let seq = seq.to_string();
                tags.iter().any(|tag| counts(tag) && tag.opaque == seq)
            }
        }
    }
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Answer<Option<Tags>> {
    let mut list = Vec::new();
    let mut lines = 0;
    for value in headers.get_all(name) {
        let wrong = |_| Problem::argument(name.as_str(), "is not ASCII");
        let text = value.to_str().map_err(wrong)?.trim();
        lines += 1;
        if text == "*" {
            list.push(None);
            continue;
        }
        let what = "is neither * nor a list of quoted etags such as \"12\"";
        let tags = tag_list(text).ok_or_else(|| Problem::argument(name.as_str(), what))?;
        list.extend(tags.into_iter().map(Some));
    }
    if lines == 0 {
        return Ok(None);
    }
    if list.len() == 1 && list.first() == Some(&None) {
        return Ok(Some(Tags::Any));
    }
    let tags: Option<Vec<_>> = list.into_iter().collect();
    let mixed = || Problem::argument(name.as_str(), "has * beside other etags");
    Ok(Some(Tags::List(tags.ok_or_else(mixed)?)))
}

/// `"1", W/"2"`, with at least one member; `None` where it is not of that form.
fn tag_list(text: &str) -> Option<Vec<Tag>> {
    let mut tags = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return (!tags.is_empty()).then_some(tags);
        }
        let (strength, quoted) = match rest.strip_prefix("W/") {
            Some(quoted) => (Strength::Weak, quoted),
            None => (Strength::Strong, rest),
        };
        let (opaque, after) = quoted.strip_prefix('"')?.split_once('"')?;
        tags.push(Tag { strength, opaque: opaque.to_owned() });
        rest = after.trim_start_matches([' ', '\t']);
        if !(rest.is_empty() || rest.starts_with(',')) {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &HeaderName, lines: &[&'static str]) -> Answer<Conditions> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, line.parse().unwrap());
        }
        Conditions::parse(&headers)
    }

    fn if_match(lines: &[&'static str]) -> Conditions {
        parsed(&header::IF_MATCH, lines).unwrap()
    }

    fn if_none_match(lines: &[&'static str]) -> Conditions {
        parsed(&header::IF_NONE_MATCH, lines).unwrap()
    }

    const NOW: Option<Seq> = Some(Seq(12));

    #[test]
    fn a_match_wants_one_of_its_strong_tags() {
        assert_eq!(if_match(&["\"12\""]).failed(NOW), None);
        assert_eq!(if_match(&["\"1\", \"12\""]).failed(NOW), None);
        assert_eq!(if_match(&["\"1\"", "\"12\""]).failed(NOW), None);
        assert_eq!(if_match(&["*"]).failed(NOW), None);
        for other in ["\"1\"", "W/\"12\"", "\"012\"", "\"abc, 12\""] {
            assert_eq!(if_match(&[other]).failed(NOW), Some(Failed::Match), "{other}");
        }
        assert_eq!(if_match(&["*"]).failed(None), Some(Failed::Match));
        assert_eq!(if_match(&["\"12\""]).failed(None), Some(Failed::Match));
    }

    #[test]
    fn none_match_compares_weakly() {
        assert_eq!(if_none_match(&["*"]).failed(None), None);
        assert_eq!(if_none_match(&["*"]).failed(NOW), Some(Failed::NoneMatch));
        assert_eq!(if_none_match(&["W/\"12\",,\"3\" "]).failed(NOW), Some(Failed::NoneMatch));
        assert_eq!(if_none_match(&["\"1\""]).failed(NOW), None);
    }

    #[test]
    fn no_header_is_no_condition() {
        let none = Conditions::parse(&HeaderMap::new()).unwrap();
        assert!(none.is_empty());
        assert_eq!(none.failed(None), None);
    }

    #[test]
    fn what_is_not_judged_is_refused() {
        assert!(Conditions::refuse(&HeaderMap::new()).is_ok());
        for name in [header::IF_MATCH, header::IF_NONE_MATCH] {
            let headers = [(name.clone(), "*".parse().unwrap())].into_iter().collect();
            let problem = Conditions::refuse(&headers).unwrap_err();
            assert!(problem.detail.starts_with(name.as_str()), "{}", problem.detail);
            assert!(problem.detail.contains("PUT or DELETE"), "{}", problem.detail);
        }
    }

    #[test]
    fn what_is_no_list_of_tags_is_refused() {
        for wrong in ["12", "\"12", "\"1\" \"2\"", "", ",", "*, \"1\"", "w/\"1\""] {
            assert!(parsed(&header::IF_MATCH, &[wrong]).is_err(), "{wrong:?}");
        }
        assert!(parsed(&header::IF_MATCH, &["*", "\"1\""]).is_err());
    }
}
