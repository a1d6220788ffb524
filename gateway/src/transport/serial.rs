//! Serial ports: opened, driven, and opened again when the cable comes back.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use protocols::Peer;
use tokio_serial::SerialPortBuilderExt;
use tracing::{info, warn};

use super::drive::drive;
use super::wire::Wire;
use super::{Adapter, Bound, Listen, Services, seed};

/// Pause before a lost port is opened again; doubles up to the maximum.
const REOPEN_PAUSE_MIN: Duration = Duration::from_millis(500);
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(30);

pub(super) fn start(adapter: Arc<Adapter>, services: &Arc<Services>) -> io::Result<Bound> {
    let Listen::Serial { path, baud } = adapter.listen.clone() else {
        return Err(io::Error::other("not a serial address"));
    };
    let services = Arc::clone(services);
    services.tasks.clone().spawn("serial", serve(path, baud, adapter, services));
    Ok(Bound { address: None })
}

async fn serve(path: PathBuf, baud: u32, adapter: Arc<Adapter>, services: Arc<Services>) {
    let mut pause = REOPEN_PAUSE_MIN;
    while !services.tasks.is_stopping() {
        match tokio_serial::new(path.to_string_lossy(), baud).open_native_async() {
            Ok(port) => {
                info!(adapter = %adapter.info.name, path = %path.display(), baud, "serial port open");
                pause = REOPEN_PAUSE_MIN;
                let peer = Peer { address: None, adapter: Arc::clone(&adapter.info.name), seed: seed(), secure: false };
                if let Some(language) = adapter.languages.first() {
                    // An unplugged port reads as its end: the drive returns and the port is opened anew.
                    drive(Wire::Serial(Box::new(port)), BytesMut::new(), peer, language, &adapter, &services, None)
                        .await;
                }
            }
            Err(error) => {
                warn!(adapter = %adapter.info.name, path = %path.display(), %error, "cannot open the serial port");
                services.metrics.fault(&adapter.info.name, "serial");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = services.tasks.stopping() => return,
        }
        pause = (pause * 2).min(REOPEN_PAUSE_MAX);
    }
}
