//! Has the C library give freed memory back to the box.
//!
//! glibc keeps what was freed for a next time: by itself after 25,000 short streams it held 49 to 71 MB, told so 31. It
//! reads how it is told once, before `main`; so the process begins once more with the variables set. Where a debugger or
//! a profiler should see one process only, set them yourself. `docs/decisions/0010-allocator.md` has what was measured.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Pieces of 16 KiB and more are mapped one by one and unmapped when freed; what is free at the end of the heap above
/// 64 KiB goes back at once; all threads share one heap, so that none has holes of its own.
const SETTINGS: [(&str, &str); 3] =
    [("MALLOC_MMAP_THRESHOLD_", "16384"), ("MALLOC_TRIM_THRESHOLD_", "65536"), ("MALLOC_ARENA_MAX", "1")];
/// Says that it was told. Where the loader removes the settings (a file with capabilities), they would be lacking again,
/// for ever.
const TOLD: &str = "SLUICEGATE_ALLOCATOR";

/// Begins the process anew, as the same process, if one of the settings is lacking. What its user set stays.
pub(super) fn tell() {
    if !cfg!(target_env = "gnu") || env::var_os(TOLD).is_some() {
        return;
    }
    let lacking = lacking(env::var_os);
    let mut arguments = env::args_os();
    let (Ok(program), Some(name), false) = (env::current_exe(), arguments.next(), lacking.is_empty()) else { return };
    let error = Command::new(program).arg0(name).args(arguments).envs(lacking).env(TOLD, "told").exec();
    // Replaced on disk meanwhile, or emulated: it runs all the same, with more memory.
    tracing::debug!(%error, "the C library keeps what is freed");
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
