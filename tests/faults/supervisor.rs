//! System calls that fail at will: the process under test runs under a seccomp filter that asks us about some of its calls
//! (seccomp_unotify(2)), and we let them pass or say with which error they fail.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use libc::{c_int, c_long, sock_filter, sock_fprog};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::lab::Setup;

/// A call the process is about to make.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub number: c_long,
    pub pid: u32,
}

type Plan = Box<dyn FnMut(Call) -> Option<c_int> + Send>;

/// The calls of one process, in our hand; all pass until told otherwise.
pub struct Faults {
    plan: Arc<Mutex<Plan>>,
    stop: Arc<AtomicBool>,
    answering: Option<JoinHandle<()>>,
}

impl Faults {
    /// Puts the calls of what `setup` starts in our hand.
    pub fn around(setup: Setup, calls: &'static [c_long]) -> (Self, Setup) {
        let (tell, told) = mpsc::channel::<OwnedFd>();
        let setup = setup.prepare(move || {
            tell.send(ask_about(calls).expect("seccomp"))
                .expect("heard");
        });
        let plan: Arc<Mutex<Plan>> = Arc::new(Mutex::new(Box::new(|_| None)));
        let stop = Arc::new(AtomicBool::new(false));
        let answering = thread::spawn({
            let (plan, stop) = (plan.clone(), stop.clone());
            move || {
                if let Ok(listener) = told.recv() {
                    answer(&listener, &plan, &stop);
                }
            }
        });
        let faults = Self {
            plan,
            stop,
            answering: Some(answering),
        };
        (faults, setup)
    }

    /// From now on this decides about each call: the number of an error, or none.
    pub fn set(&self, plan: impl FnMut(Call) -> Option<c_int> + Send + 'static) {
        *self.plan.lock().expect("plan") = Box::new(plan);
    }

    /// Lets all calls pass again.
    pub fn clear(&self) {
        self.set(|_| None);
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(answering) = self.answering.take() {
            let _ = answering.join();
        }
    }
}

fn answer(listener: &OwnedFd, plan: &Mutex<Plan>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut waits = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut waits, PollTimeout::from(50_u8));
        let events = waits[0].revents().unwrap_or(PollFlags::empty());
        if !events.contains(PollFlags::POLLIN) {
            if events.contains(PollFlags::POLLHUP) {
                return;
            }
            continue;
        }
        // SAFETY: all bytes zero are a valid seccomp_notif, which is what the kernel wants to see.
        let mut asked: libc::seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: the kernel writes one seccomp_notif, which outlives the call.
        let done = unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_RECV,
                &raw mut asked,
            )
        };
        if done < 0 {
            // The process died while it asked.
            continue;
        }
        let call = Call {
            number: asked.data.nr.into(),
            pid: asked.pid,
        };
        let error = plan.lock().expect("plan")(call);
        let answer = libc::seccomp_notif_resp {
            id: asked.id,
            val: 0,
            error: error.map_or(0, |error| -error),
            flags: if error.is_some() {
                0
            } else {
                libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32
            },
        };
        // SAFETY: the kernel reads one seccomp_notif_resp, which outlives the call. It fails if nobody waits any more.
        unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SEND,
                &raw const answer,
            )
        };
    }
}

/// Has the kernel ask about these calls of this thread and of what it starts.
fn ask_about(calls: &[c_long]) -> io::Result<OwnedFd> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let statement = |code, k| sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    // The number is the first field of seccomp_data.
    let mut program = vec![statement(LOAD, 0)];
    for call in calls {
        program.push(sock_filter {
            code: EQUAL,
            jt: 0,
            jf: 1,
            k: u32::try_from(*call).expect("a number"),
        });
        program.push(statement(RETURN, libc::SECCOMP_RET_USER_NOTIF));
    }
    program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
    let program = sock_fprog {
        len: u16::try_from(program.len()).expect("short"),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: this changes no memory.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel copies the program, which outlives the call.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let listener = c_int::try_from(listener).expect("a descriptor");
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, for nobody but us.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}
