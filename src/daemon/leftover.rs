//! What a failed start leaves behind, and how it goes again.

use std::{
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    path::{Component, Path},
};

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};

/// Files we created. Each is known by its folder, as paths may lead nowhere by then.
#[derive(Debug, Default)]
pub struct Leftovers(Vec<(OwnedFd, OsString)>);

impl Leftovers {
    /// A file that is ours.
    pub fn add(&mut self, path: &Path) {
        // What cannot be taken away stays.
        self.0.extend(place(path).ok());
    }

    /// A file that is about to be opened: ours, unless there is one already.
    pub fn expect(&mut self, path: Option<&Path>) {
        if let Some(path) = path
            && path.symlink_metadata().is_err()
        {
            self.add(path);
        }
    }

    /// Takes the files away, if we still have the right to.
    pub fn remove(&self) {
        for (folder, name) in &self.0 {
            let _ = unlinkat(folder, name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

fn place(path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let Some(Component::Normal(name)) = path.components().next_back() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok((open(folder, flags, Mode::empty())?, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::{env, fs, process};

    use super::*;

    #[test]
    fn what_we_made_goes_and_what_was_there_stays() {
        let dir = env::temp_dir().join(format!("passt-leftover-{}", process::id()));
        fs::create_dir(&dir).unwrap();
        let path = |name| dir.join(name);
        for name in ["socket", "theirs"] {
            fs::write(path(name), "").unwrap();
        }
        let mut leftovers = Leftovers::default();
        leftovers.add(&path("socket"));
        for name in ["theirs", "ours", "never"] {
            leftovers.expect(Some(&path(name)));
        }
        leftovers.expect(None);
        leftovers.expect(Some(Path::new("/nonexistent/file")));
        fs::write(path("ours"), "").unwrap();
        leftovers.remove();
        leftovers.remove();
        let left = fs::read_dir(&dir).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["theirs"]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_no_file_is_no_leftover() {
        let mut leftovers = Leftovers::default();
        for path in ["/", "..", ""] {
            leftovers.add(Path::new(path));
        }
        assert!(leftovers.0.is_empty());
    }
}
