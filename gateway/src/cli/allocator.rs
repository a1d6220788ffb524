//! Has the C library give freed memory back to the box.
//!
//! glibc keeps what was freed for a next time: by itself after 25,000 short streams it held 49 to 71 MB, told so 31. It
//! reads how it is told once, before `main`; so the process begins once more with the variables set. Where a debugger or
//! a profiler should see one process only, set them yourself. `docs/decisions/0010-allocator.md` has what was measured.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use nix::unistd::execve;

/// Pieces of 16 KiB and more are mapped one by one and unmapped when freed; what is free at the end of the heap above
/// 64 KiB goes back at once; all threads share one heap, so that none has holes of its own.
const SETTINGS: [(&str, &str); 3] =
    [("MALLOC_MMAP_THRESHOLD_", "16384"), ("MALLOC_TRIM_THRESHOLD_", "65536"), ("MALLOC_ARENA_MAX", "1")];
/// Says that it was told. Where the loader removes the settings (a file with capabilities), they would be lacking again,
/// for ever.
const TOLD: &str = "SLUICEGATE_ALLOCATOR";

/// Begins the process anew, as the same process, if one of the settings is lacking. What its user set stays.
///
/// `execve` itself, not what the standard library calls: that one gives a file which the kernel cannot run to the shell.
pub(super) fn tell() {
    if !cfg!(target_env = "gnu") || env::var_os(TOLD).is_some() {
        return;
    }
    let lacking = lacking(env::var_os);
    let Some(program) = env::current_exe().ok().filter(|_| !lacking.is_empty()) else { return };
    let own = env::vars_os().map(|(name, value)| pair(name.as_bytes(), value.as_bytes()));
    let told = lacking.into_iter().chain([(TOLD, "told")]).map(|(name, value)| pair(name.as_bytes(), value.as_bytes()));
    let text = |bytes: &OsStr| CString::new(bytes.as_bytes()).ok();
    let arguments: Option<Vec<CString>> = env::args_os().map(|argument| text(&argument)).collect();
    let variables: Option<Vec<CString>> = own.chain(told).collect();
    let (Some(program), Some(arguments), Some(variables)) = (text(program.as_os_str()), arguments, variables) else {
        return;
    };
    let Err(error) = execve(&program, &arguments, &variables);
    // Replaced on disk meanwhile, or emulated: it runs all the same, with more memory.
    tracing::debug!(%error, "the C library keeps what is freed");
}

fn pair(name: &[u8], value: &[u8]) -> Option<CString> {
    CString::new([name, b"=", value].concat()).ok()
}

fn lacking(set: impl Fn(&'static str) -> Option<OsString>) -> Vec<(&'static str, &'static str)> {
    SETTINGS.into_iter().filter(|(name, _)| set(name).is_none()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_set_stays() {
        assert_eq!(lacking(|_| None), SETTINGS);
        let own = |name| (name == "MALLOC_ARENA_MAX").then(|| OsString::from("4"));
        assert_eq!(lacking(own), SETTINGS[..2]);
        assert!(lacking(|_| Some(OsString::from("1"))).is_empty());
    }

    #[test]
    fn the_unit_sets_the_same() {
        let unit = include_str!("../../../systemd/sluicegate.service");
        for (name, value) in SETTINGS {
            assert!(unit.contains(&format!("{name}={value}")), "{name}");
        }
    }
}
