//! Errors of system calls: in the words of strerror(3), and of which kind they are.

use std::io;

/// An error's text, without the number that `io::Error` adds to it.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error ")
        .map_or(text.as_str(), |(words, _)| words)
        .to_owned()
}

/// Whether an error means that the system, or what it allows this process, is exhausted.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
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
