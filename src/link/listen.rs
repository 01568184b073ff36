//! Where the guest connects: a UNIX socket we listen on, or one that is connected already.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{fs::FileTypeExt, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::{
    config::{LinkChoice, SOCKET_PATH_MAX},
    sys::{process, reason},
};

/// Names tried when none is given.
const PROBES: u32 = 64;

/// The way in, open.
#[derive(Debug)]
pub enum Opened {
    /// Clients will connect to this socket.
    Listener { socket: OwnedFd, path: PathBuf },
    /// The client is connected.
    Connected(OwnedFd),
}

/// Why a path cannot be listened on.
enum Refused {
    /// Somebody serves it.
    InUse,
    /// Something stands there that is no socket.
    NoSocket,
    Other(io::Error),
}

/// Opens the way in.
///
/// # Errors
/// One line for a person.
pub fn open(choice: &LinkChoice) -> Result<Opened, String> {
    match choice {
        LinkChoice::Socket(path) => listen_at(path),
        LinkChoice::Probe => probe(Path::new("/tmp")),
        LinkChoice::Fd(fd) => {
            let socket = process::adopt(*fd)
                .map_err(|error| format!("Could not move --fd descriptor: {}", reason(&error)))?;
            check_stream(&socket).map_err(|what| format!("Invalid --fd: {fd}: {what}"))?;
            Ok(Opened::Connected(socket))
        }
    }
}

/// Listens at a path for others than the guest.
///
/// # Errors
/// One line for a person.
pub fn aside(path: &Path) -> Result<OwnedFd, String> {
    match listen_at(path)? {
        Opened::Listener { socket, .. } | Opened::Connected(socket) => Ok(socket),
    }
}

fn check_stream(socket: &OwnedFd) -> Result<(), &'static str> {
    let socket = SockRef::from(socket);
    if !socket.r#type().is_ok_and(|kind| kind == Type::STREAM) {
        return Err("not a stream socket");
    }
    socket.peer_addr().map_err(|_| "not connected")?;
    socket
        .set_nonblocking(true)
        .map_err(|_| "cannot be made non-blocking")
}

fn listen_at(path: &Path) -> Result<Opened, String> {
    if path.as_os_str().is_empty() || path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(format!(
            "Invalid socket path: {} (1 to {SOCKET_PATH_MAX} octets)",
            path.display()
        ));
    }
    match bind(path) {
        Ok(socket) => Ok(Opened::Listener {
            socket,
            path: path.to_owned(),
        }),
        Err(Refused::InUse) => Err(format!("Socket path {} already in use", path.display())),
        Err(Refused::NoSocket) => Err(format!(
            "Failed to bind UNIX domain socket {}: there is a file that is no socket",
            path.display()
        )),
        Err(Refused::Other(error)) => Err(format!(
            "Failed to bind UNIX domain socket {}: {}",
            path.display(),
            reason(&error)
        )),
    }
}

/// The first of the default paths in `folder` that is free, or left behind by somebody who is gone.
fn probe(folder: &Path) -> Result<Opened, String> {
    let mut last = None;
    for index in 1..=PROBES {
        let path = folder.join(format!("passt_{index}.socket"));
        match bind(&path) {
            Ok(socket) => return Ok(Opened::Listener { socket, path }),
            Err(Refused::InUse | Refused::NoSocket) => {}
            Err(Refused::Other(error)) => last = Some(error),
        }
    }
    let why = last.map_or_else(|| "all paths in use".to_owned(), |error| reason(&error));
    Err(format!("Failed to bind UNIX domain socket: {why}"))
}

/// Listens at a path, in place of a socket that nobody serves any more.
fn bind(path: &Path) -> Result<OwnedFd, Refused> {
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(Refused::NoSocket);
        }
        if is_answered(path) {
            return Err(Refused::InUse);
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Refused::Other(error));
            }
            _ => {}
        }
    }
    let socket = UnixListener::bind(path).map_err(Refused::Other)?;
    socket.set_nonblocking(true).map_err(Refused::Other)?;
    Ok(socket.into())
}

/// Whether somebody serves a socket. Who asks for another type of socket than there is gets an answer without being a
/// client (EPROTOTYPE, connect(2)); only three say that nobody is there: no such file, nobody behind it, no right to know.
fn is_answered(path: &Path) -> bool {
    let connected = SockAddr::unix(path)
        .and_then(|address| Socket::new(Domain::UNIX, Type::DGRAM, None)?.connect(&address));
    let vacant = [
        io::ErrorKind::NotFound,
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::PermissionDenied,
    ];
    connected.map_or_else(|error| !vacant.contains(&error.kind()), |()| true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("passt-listen-{}-{name}", std::process::id()))
    }

    fn at(path: &Path) -> Result<Opened, String> {
        open(&LinkChoice::Socket(path.to_owned()))
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let path = path("stale");
        let first = at(&path).unwrap();
        assert_eq!(
            at(&path).unwrap_err(),
            format!("Socket path {} already in use", path.display())
        );
        drop(first);
        assert!(path.exists());
        assert!(at(&path).is_ok());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let path = path("file");
        fs::write(&path, "precious").unwrap();
        assert_eq!(
            at(&path).unwrap_err(),
            format!(
                "Failed to bind UNIX domain socket {}: there is a file that is no socket",
                path.display()
            )
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn paths_that_cannot_be_are_refused() {
        let long = format!("/tmp/{}", "x".repeat(104));
        assert_eq!(
            at(Path::new(&long)).unwrap_err(),
            format!("Invalid socket path: {long} (1 to 107 octets)")
        );
        assert_eq!(
            at(Path::new("/nowhere/socket")).unwrap_err(),
            "Failed to bind UNIX domain socket /nowhere/socket: No such file or directory"
        );
    }

    #[test]
    fn a_descriptor_must_be_a_connected_stream() {
        use std::os::fd::IntoRawFd;
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(matches!(
            open(&LinkChoice::Fd(ours.into_raw_fd())),
            Ok(Opened::Connected(_))
        ));
        let file = fs::File::open("/dev/null").unwrap().into_raw_fd();
        assert_eq!(
            open(&LinkChoice::Fd(file)).unwrap_err(),
            format!("Invalid --fd: {file}: not a stream socket")
        );
        assert_eq!(
            open(&LinkChoice::Fd(88_888)).unwrap_err(),
            "Could not move --fd descriptor: Bad file descriptor"
        );
    }

    #[test]
    fn a_socket_whose_server_accepts_nobody_is_in_use_too() {
        let path = path("busy");
        let address = SockAddr::unix(&path).unwrap();
        let busy = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        busy.bind(&address).unwrap();
        busy.listen(0).unwrap();
        let mut clients = Vec::new();
        loop {
            let client = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
            if client.connect(&address).is_err() {
                break;
            }
            clients.push(client);
        }
        assert!(at(&path).unwrap_err().ends_with("already in use"));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn probing_passes_by_live_sockets_and_files_and_takes_stale_sockets() {
        let folder = path("probe");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("passt_2.socket"), "precious").unwrap();
        drop(UnixListener::bind(folder.join("passt_3.socket")).unwrap());
        let found: Vec<Opened> = (0..3).map(|_| probe(&folder).unwrap()).collect();
        let paths: Vec<&PathBuf> = found
            .iter()
            .filter_map(|opened| match opened {
                Opened::Listener { path, .. } => Some(path),
                Opened::Connected(_) => None,
            })
            .collect();
        let wanted = [1, 3, 4].map(|n| folder.join(format!("passt_{n}.socket")));
        assert_eq!(paths, wanted.iter().collect::<Vec<_>>());
        let kept = fs::read_to_string(folder.join("passt_2.socket")).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(kept, "precious");
    }
}
