//! Peers that Debian does not have: fetched from where their authors publish them, once, beside the build.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use sluicegate_tests::root;

const NODE_MEDIA_SERVER: &str = "node-media-server@4.4.3";
const XIU: &str = "0.14.0";

/// The folder in which node-media-server's program is.
pub(crate) fn node_media_server() -> anyhow::Result<PathBuf> {
    let folder = root().join("target/peers-npm/node-media-server");
    let program = folder.join("node_modules/node-media-server/bin/app.js");
    if !program.exists() {
        std::fs::create_dir_all(&folder)?;
        let arguments = ["install", "--silent", "--no-audit", "--no-fund", "--prefix"];
        done(Command::new("npm").args(arguments).arg(&folder).arg(NODE_MEDIA_SERVER))?;
    }
    Ok(program)
}

/// xiu's program; building it takes minutes, and Debian's libopus-dev and pkg-config.
pub(crate) fn xiu() -> anyhow::Result<PathBuf> {
    let folder = root().join("target/peers-xiu");
    let program = folder.join("bin/xiu");
    if !program.exists() {
        let mut command = Command::new("cargo");
        command.args(["install", "xiu", "--version", XIU, "--locked", "--root"]).arg(&folder);
        done(command.env_remove("CARGO_TARGET_DIR")).context("xiu also needs Debian's libopus-dev and pkg-config")?;
    }
    Ok(program)
}

fn done(command: &mut Command) -> anyhow::Result<()> {
    let what = format!("{command:?}");
    let status = command.status().with_context(|| what.clone())?;
    ensure!(status.success(), "{what}: {status}");
    Ok(())
}
