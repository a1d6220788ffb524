//! What a destination will never take: set aside in `STORE/refused/UPSTREAM.jsonl`, one JSON object a line, with the
//! reason, so that a person can look and send it by hand. Bounded: a full file takes nothing more.

use std::io;
use std::path::Path;

use tokio::io::AsyncWriteExt;

/// Bytes of one upstream's file.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Adds a line. `false`: the file is full, the line is not kept.
pub(super) async fn set_aside(folder: &Path, upstream: &str, line: &serde_json::Value) -> io::Result<bool> {
    tokio::fs::create_dir_all(folder).await?;
    let path = folder.join(format!("{}.jsonl", upstream.replace(['/', '\\', '\0'], "_")));
    let mut file = tokio::fs::OpenOptions::new().create(true).append(true).open(path).await?;
    if file.metadata().await?.len() >= FILE_BYTES_MAX {
        return Ok(false);
    }
    file.write_all(format!("{line}\n").as_bytes()).await?;
    file.sync_data().await?;
    Ok(true)
}
