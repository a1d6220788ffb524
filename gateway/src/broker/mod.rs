//! The exchange's seam. The broker itself replaces this file.

#![allow(clippy::unused_async, reason = "the seam is asynchronous")]

use std::sync::Arc;

use protocols::Refusal;
use protocols::exchange::{Event, Publication, Request};

#[derive(Debug, Clone)]
pub struct Broker;

#[derive(Debug)]
pub struct Attachment;

impl Broker {
    pub fn open(
        _config: &crate::config::Broker,
        _keyed: crate::bus::Keyed,
        _access: Arc<crate::credentials::Gatekeeper>,
        _tasks: &crate::threads::Tasks,
    ) -> std::io::Result<Self> {
        Ok(Self)
    }

    pub async fn attach(&self, _request: Request) -> Result<(Attachment, Event), Event> {
        std::future::pending().await
    }
}

impl Attachment {
    pub async fn request(&mut self, _request: Request) -> Option<Event> {
        None
    }

    pub async fn next(&mut self) -> Event {
        std::future::pending().await
    }

    pub async fn publish(&mut self, _publication: Publication) -> Result<(), Refusal> {
        Ok(())
    }
}
