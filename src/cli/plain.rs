//! Text for people, which may have names in it that somebody else has chosen.

use std::borrow::Cow;

/// A text without control characters other than line ends: those in a label or in a machine's name, which come from the bucket, are not to do
/// anything to the terminal. They are spelled as in JSON, so that JSON stays what it is.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && c != '\n';
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match acts(c) {
            true => plain.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_spelled_out_and_all_else_stays() {
        assert_eq!(plain("über\nalles"), "über\nalles");
        assert_eq!(plain("a\u{1b}[31m\r\u{9b}b"), "a\\u001b[31m\\u000d\\u009bb");
    }
}
