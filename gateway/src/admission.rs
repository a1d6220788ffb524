//! Who is let in to a stream: one way in for every protocol, with every lock in its order.
//!
//! Key or signature (`credentials.rs`), then the hook (`hooks.rs`), then what the box can take (`stream`). A viewer's hook
//! is asked before its stream has to be there, so that it may have a camera started.

use protocols::{Claim, Identity, Refusal};

use crate::credentials::Gatekeeper;
use crate::hls::Hls;
use crate::hooks::{HLS, Hooks, Stay, Visit};
use crate::intake::AdapterInfo;
use crate::signing::Kind;
use crate::stream::StreamCore;

/// The locks.
#[derive(Debug, Clone, Copy)]
pub struct Locks<'a> {
    pub gatekeeper: &'a Gatekeeper,
    pub hooks: &'a Hooks,
    pub hls: &'a Hls,
    pub streams: &'a StreamCore,
}

/// Somebody who is in.
#[derive(Debug)]
pub struct Admitted {
    pub identity: Identity,
    /// To be held as long as they are there.
    pub stay: Option<Stay>,
}

impl Locks<'_> {
    /// Decides a claim that came over this adapter and protocol. Waits for the hook, and for a viewer's stream.
    pub async fn admit(
        &self,
        adapter: &AdapterInfo,
        protocol: &str,
        peer: Option<std::net::SocketAddr>,
        claim: &Claim,
    ) -> Result<Admitted, Refusal> {
        let identity = self.gatekeeper.admit(adapter, claim).await?;
        let (kind, stream, pass) = match claim {
            Claim::Device { .. } => return Ok(Admitted { identity, stay: None }),
            Claim::Publish { stream, pass } => (Kind::Publish, stream, pass),
            Claim::Watch { stream, pass } => (Kind::Play, stream, pass),
        };
        if kind == Kind::Publish {
            // What cannot be is not worth asking about.
            self.streams.publishable(stream)?;
        }
        let visit =
            Visit { stream: stream.to_string(), protocol: protocol.to_owned(), peer, query: pass.query.clone() };
        // The console's own viewers are not the hook's affair: they are there to look after the streams.
        if &*identity.name != Gatekeeper::CONSOLE {
            self.hooks.ask(kind, &visit).await?;
        }
        match kind {
            // Somebody else may have come while the hook thought.
            Kind::Publish => self.streams.publishable(stream)?,
            // A stream's end can be seen for a while after it.
            Kind::Play if self.hls.holds(stream) => {}
            Kind::Play => self.streams.available(stream).await?,
        }
        // A player of HLS comes anew with every request, and nobody sees it go.
        let stay = if protocol == HLS { None } else { self.hooks.stay(kind, visit) };
        Ok(Admitted { identity, stay })
    }
}
