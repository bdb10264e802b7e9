//! The block cache on hosts that lack something: a disk that works, locks, a user of one's own.
//!
//! What a system call answers is decided by a filter (seccomp), in a process of its own, so the code under test is the
//! one that ships.
#![expect(unsafe_code, reason = "seccomp filters")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache::{BLOCK, Rig, SIZE};

const TOLD: &str = "STANDPIPE_TEST_HOST";
/// The objects that are read.
const OBJECTS: std::ops::Range<u8> = 1..5;

/// `Some` in a process that was started by [`process`]: where the cache is, and its part.
fn told() -> Option<(PathBuf, String)> {
    let told = std::env::var(TOLD).ok()?;
    let (part, dir) = told.split_once('|').unwrap();
    Some((dir.into(), part.into()))
}

/// This test in another process, which plays a part.
fn process(test: &str, dir: &Path, part: &str) -> Command {
    // By way of the kernel's link: another user may not search the folders above.
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["--exact", &format!("cache_hosts::{test}"), "--nocapture"])
        .env(TOLD, format!("{part}|{}", dir.display()))
        .stdout(Stdio::null());
    command
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// What holds of an argument of a system call.
#[derive(Debug, Clone, Copy)]
enum Is {
    AtLeast(u32, u32),
    Equal(u32, u32),
}

/// From now on this thread, and those that it starts, get `errno` from calls of `number` whose arguments are such.
fn refuse(number: libc::c_long, conditions: &[Is], errno: i32) {
    let stmt = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let load = |at| stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at);
    // Past what is left of the conditions, and the refusal.
    let jump = |test: u32, k: u32, skip: usize| libc::sock_filter {
        jf: skip as u8,
        ..stmt(libc::BPF_JMP | test | libc::BPF_K, k)
    };
    let mut left = 2 * conditions.len() + 1;
    // `struct seccomp_data`: the number, the architecture, the instruction, and six arguments of eight bytes.
    let mut program = vec![load(0), jump(libc::BPF_JEQ, number as u32, left)];
    for is in conditions {
        left -= 2;
        let (test, argument, value) = match *is {
            Is::AtLeast(argument, value) => (libc::BPF_JGE, argument, value),
            Is::Equal(argument, value) => (libc::BPF_JEQ, argument, value),
        };
        program.extend([load(16 + 8 * argument), jump(test, value, left)]);
    }
    program.extend([
        stmt(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | errno as u32,
        ),
        stmt(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ]);
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: numbers only.
    let fixed = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(fixed, 0);
    // SAFETY: the program lives through the call, which copies it.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// Reads every object whole, and a range of each, twice.
async fn read_everything(rig: &Rig) {
    for n in OBJECTS {
        let id = rig.put(n).await;
        for _ in 0..2 {
            rig.reads(&id, n, 0, SIZE).await;
            rig.reads(&id, n, 3 * BLOCK + 7, 9 * BLOCK + 1).await;
        }
    }
    rig.flush();
}

fn on_a_runtime(work: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(work);
}

const ALL: u64 = (OBJECTS.end - OBJECTS.start) as u64 * SIZE;

/// C18: a disk that fails to give back what was stored, or to take what is new, fails no read: the bytes are fetched.
#[test]
fn a_failing_disk_fails_nothing() {
    const TEST: &str = "a_failing_disk_fails_nothing";
    let Some((dir, part)) = told() else {
        let dir = tempfile::tempdir().unwrap();
        for part in ["writes fail", "works", "some reads fail", "works still"] {
            run(&mut process(TEST, dir.path(), part));
        }
        return;
    };
    let bad_from = 12 * BLOCK;
    match part.as_str() {
        "writes fail" => refuse(libc::SYS_pwrite64, &[Is::AtLeast(2, 4096)], libc::EIO),
        "some reads fail" => {
            let bad = Is::AtLeast(3, bad_from as u32);
            refuse(libc::SYS_pread64, &[bad], libc::EIO);
            // A filter can't add: all that might reach that far.
            let long = Is::AtLeast(2, BLOCK as u32 + 1);
            refuse(libc::SYS_pread64, &[long], libc::EIO);
        }
        _ => {}
    }
    on_a_runtime(async {
        let rig = Rig::at(&dir, std::time::Duration::ZERO);
        read_everything(&rig).await;
        let (metrics, fetched) = (rig.metrics.snapshot(), rig.fetched_bytes());
        match part.as_str() {
            "writes fail" => {
                assert!(metrics.cache_errors > 0 && metrics.cache_written_bytes == 0);
                assert!(fetched > ALL, "{fetched}");
            }
            "works" => assert_eq!(fetched, ALL),
            "some reads fail" => {
                assert!(metrics.cache_errors > 0);
                // What can be read is not fetched.
                let bad = u64::from(OBJECTS.end - OBJECTS.start) * (SIZE - bad_from);
                assert!((bad..=2 * bad).contains(&fetched), "{fetched} of {bad}");
            }
            _ => assert_eq!(fetched, 0),
        }
    });
}

/// C19: without locks (some network file systems) processes do not see what others fetch: blocks are then fetched more than
/// once, and are right.
#[test]
fn without_locks_every_byte_is_right() {
    const TEST: &str = "without_locks_every_byte_is_right";
    if let Some((dir, part)) = told() {
        if part == "no locks" {
            refuse(
                libc::SYS_fcntl,
                &[Is::Equal(1, libc::F_OFD_SETLK as u32)],
                libc::ENOLCK,
            );
            refuse(libc::SYS_flock, &[], libc::ENOLCK);
        }
        return on_a_runtime(async {
            let rig = Rig::at(&dir, std::time::Duration::from_millis(2));
            read_everything(&rig).await;
            // Whole entries are mapped, and thrown out, without them too.
            let id = rig.put(OBJECTS.start).await;
            let cache = rig.client.cache();
            let entry = cache.entry(&id).unwrap().unwrap();
            if let Some(whole) = entry.complete() {
                let map = whole.mmap().unwrap();
                cache.evict(SIZE).unwrap();
                assert!(map[..] == crate::conformance::content(SIZE, OBJECTS.start));
            }
            read_everything(&rig).await;
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let parts = ["no locks", "no locks", "locks", "no locks"];
    let children = parts.map(|part| process(TEST, dir.path(), part).spawn().unwrap());
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let audit = Rig::at(dir.path(), std::time::Duration::ZERO)
        .client
        .cache()
        .verify()
        .unwrap();
    assert_eq!((audit.bad_blocks, audit.damaged_entries), (0, 0));
}

/// C20: users of one group share a cache whose directory belongs to it (`chmod g+ws`): what one has stored the other
/// reads, completes and throws out.
#[test]
fn users_of_a_group_share_a_cache() {
    const TEST: &str = "users_of_a_group_share_a_cache";
    const GROUP: u32 = 54_321;
    let half = 10 * BLOCK;
    if let Some((dir, part)) = told() {
        return on_a_runtime(async {
            let rig = Rig::at(&dir, std::time::Duration::ZERO);
            let (whole, begun) = (rig.put(1).await, rig.put(2).await);
            let cache = rig.client.cache();
            match part.as_str() {
                "stores" => {
                    rig.reads(&whole, 1, 0, SIZE).await;
                    rig.reads(&begun, 2, 0, half).await;
                    assert_eq!(rig.fetched_bytes(), SIZE + half);
                }
                "completes" => {
                    rig.reads(&whole, 1, 0, SIZE).await;
                    rig.reads(&begun, 2, 0, SIZE).await;
                    assert_eq!(rig.fetched_bytes(), SIZE - half);
                    let entry = cache.entry(&whole).unwrap().unwrap();
                    entry.complete().unwrap().mmap().unwrap();
                }
                "throws out" => {
                    rig.reads(&begun, 2, 0, SIZE).await;
                    assert_eq!(rig.fetched_bytes(), 0);
                    assert_eq!(cache.stat().unwrap().complete_entries, 2);
                    cache.clear().unwrap();
                    assert_eq!(cache.stat().unwrap().entries, 0);
                }
                other => panic!("{other}"),
            }
            rig.flush();
            assert_eq!(rig.metrics.snapshot().cache_errors, 0);
        });
    }
    let temp = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(temp.path(), 0o755);
    let dir = temp.path().join("cache");
    std::fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, None, Some(GROUP))
        .expect("this test needs root, to be two users");
    mode(&dir, 0o2770);
    let user = |uid: u32, part: &str| {
        run(process(TEST, &dir, part).uid(uid).gid(GROUP));
    };
    user(54_001, "stores");
    user(54_002, "completes");
    user(54_001, "throws out");
    // Who is not of the group is refused, and told so.
    let stranger = process(TEST, &dir, "stores")
        .uid(54_003)
        .gid(54_003)
        .stderr(Stdio::null())
        .status();
    assert!(!stranger.unwrap().success());
}
