//! Errors in the words of strerror(3).

use std::io;

/// An error's text, without the number that `io::Error` adds to it.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error ")
        .map_or(text.as_str(), |(words, _)| words)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_left_out() {
        assert_eq!(
            reason(&io::Error::from_raw_os_error(libc::EBADF)),
            "Bad file descriptor"
        );
        assert_eq!(
            reason(&io::Error::other("something else")),
            "something else"
        );
    }
}
