//! The little XML that S3 speaks, and its times.

use std::fmt::Write;

use super::objects::Page;

/// Text as it stands in XML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The inverse of [`escape`].
pub(super) fn unescape(text: &str) -> String {
    text.replace("&quot;", "\"").replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")
}

/// The texts of all elements of a name, in order, unescaped.
pub(super) fn texts(body: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut texts = Vec::new();
    let mut rest = body;
    while let Some((_, after)) = rest.split_once(&open) {
        let Some((text, after)) = after.split_once(&close) else { break };
        texts.push(unescape(text));
        rest = after;
    }
    texts
}

pub(super) fn listing(page: &Page) -> String {
    let mut xml = String::from("<ListBucketResult>");
    let truncated = page.next.is_some();
    write!(xml, "<IsTruncated>{truncated}</IsTruncated>").expect("a string takes everything");
    if let Some(next) = &page.next {
        let next = escape(next);
        write!(xml, "<NextContinuationToken>{next}</NextContinuationToken>")
            .expect("a string takes everything");
    }
    for (key, object) in &page.objects {
        let (key, e_tag) = (escape(key), escape(&object.e_tag));
        let (bytes, modified) = (object.bytes.len(), iso(object.modified_ms));
        write!(
            xml,
            "<Contents><Key>{key}</Key><Size>{bytes}</Size><ETag>{e_tag}</ETag>\
             <LastModified>{modified}</LastModified></Contents>"
        )
        .expect("a string takes everything");
    }
    for prefix in &page.prefixes {
        let prefix = escape(prefix);
        write!(xml, "<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>")
            .expect("a string takes everything");
    }
    xml + "</ListBucketResult>"
}

/// The answer to a bulk delete, in which everything succeeds.
pub(super) fn deleted(keys: &[String]) -> String {
    let mut xml = String::from("<DeleteResult>");
    for key in keys {
        let key = escape(key);
        write!(xml, "<Deleted><Key>{key}</Key></Deleted>").expect("a string takes everything");
    }
    xml + "</DeleteResult>"
}

/// A time as ISO 8601, for XML.
pub(super) fn iso(ms: u64) -> String {
    let (year, month, day) = date(ms);
    let (hour, minute, second) = time(ms);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

/// A time as in RFC 2822, for headers.
pub(super) fn rfc2822(ms: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (year, month, day) = date(ms);
    let (hour, minute, second) = time(ms);
    // The first day of Unix time was a Thursday.
    let weekday = DAYS[usize::try_from(ms / 86_400_000 % 7).unwrap_or(0)];
    let month = MONTHS[usize::try_from(month - 1).unwrap_or(0)];
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

fn time(ms: u64) -> (u64, u64, u64) {
    let seconds = ms / 1000;
    (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// Year, month and day (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn date(ms: u64) -> (u64, u64, u64) {
    let days = ms / 86_400_000 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spelt_as_clients_read_them() {
        assert_eq!(iso(1_709_210_096_789), "2024-02-29T12:34:56.789Z");
        assert_eq!(rfc2822(1_709_210_096_789), "Thu, 29 Feb 2024 12:34:56 GMT");
        assert_eq!(rfc2822(0), "Thu, 01 Jan 1970 00:00:00 GMT");
    }

    #[test]
    fn texts_are_found_and_unescaped() {
        let body = "<Delete><Object><Key>a&amp;b</Key></Object><Object><Key>c</Key></Object>";
        assert_eq!(texts(body, "Key"), ["a&b", "c"]);
        assert_eq!(unescape(&escape("<a&\"b\">")), "<a&\"b\">");
    }
}
