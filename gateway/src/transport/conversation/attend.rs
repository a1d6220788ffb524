//! What takes waiting for other parts: who may come in, reports and what they are promised, the exchange, streams.

use std::sync::Arc;

use device_models::Report;
use protocols::exchange::{Publication, Request};
use protocols::media::StreamName;
use protocols::{Claim, Identity, Input, MediaEvent, Output, Refusal, Ticket};
use tracing::debug;

use super::{Conversation, Ending, Plain};
use crate::admission::Admitted;
use crate::clock;
use crate::hooks::Stay;
use crate::intake::Appended;
use crate::stream::StreamCore;
use crate::transport::Adapter;
use crate::transport::line::Line;
use crate::transport::media;
use crate::transport::unsettled::Need;
use crate::transport::wire::Wire;

impl Conversation {
    /// Carries out this output and all behind it.
    pub(super) async fn attend(&mut self, wire: &Wire, mut output: Output) -> Option<Ending> {
        let streams = self.services.streams.clone();
        loop {
            match output {
                Output::Admit { ticket, claim } => self.admit(ticket, claim).await,
                Output::Speaks { by, device, product } => self.speaks(&by, &device, product.as_deref()).await,
                Output::Report { ticket, by, report } => self.report(ticket, &by, report).await,
                Output::Answer { id, outcome } => self.services.intake.devices().session_answered(&id, outcome).await,
                Output::Unsent { id } => self.services.intake.devices().session_unsent(&id),
                Output::Exchange(request) => self.exchange(request).await,
                Output::Describe { ticket, stream } => {
                    let outcome = media::describe(&streams, &stream).await;
                    self.receive(Input::Media(MediaEvent::Described { ticket, outcome }));
                }
                Output::Open { ticket, remote } => {
                    let outcome = self.open_ports(wire, ticket, remote).await;
                    self.receive(Input::Media(MediaEvent::Opened { ticket, outcome }));
                }
                Output::Follow { stream } => {
                    if let Err(refusal) = self.media().follow(&streams, &stream).await {
                        return Some(Ending::Closed(refusal.to_string().into()));
                    }
                }
                Output::Source { stream } => {
                    let origin = self.address.map(|address| format!("{}://{address}", self.language.row.name()));
                    let silence = self.stay.as_ref().map(Stay::silence);
                    let origin = origin.unwrap_or_default();
                    if let Err(refusal) = self.media().publish(&streams, &stream, &origin, silence).await {
                        return Some(Ending::Closed(refusal.to_string().into()));
                    }
                }
                Output::Unit(unit) => {
                    if let Err(parted) = self.media().push(unit).await {
                        return Some(Ending::Closed(parted.to_string().into()));
                    }
                }
                Output::Carry { ticket, stream } => self.carry(&streams, ticket, &stream).await,
                Output::Carried { ticket, unit } => match self.media().push_to(ticket, unit).await {
                    // Who sends media is no noise.
                    Ok(()) => self.faults = 0,
                    Err(parted) => {
                        debug!(peer = ?self.address, %parted, "a stream of several");
                        self.receive(Input::Media(MediaEvent::Parted { ticket }));
                    }
                },
                // The plain ones never come here.
                _ => {}
            }
            match self.carry_out_plain(wire) {
                Plain::Done => return None,
                Plain::Ending(ending) => return Some(ending),
                Plain::Attend(next) => output = next,
            }
        }
    }

    /// One more stream of a peer that has several.
    async fn carry(&mut self, streams: &StreamCore, ticket: Ticket, stream: &StreamName) {
        let origin = self.address.map(|address| format!("{}://{address}", self.language.row.name()));
        let stay = self.stay.take();
        if let Err(refusal) = self.media().carry(streams, ticket, stream, &origin.unwrap_or_default(), stay).await {
            debug!(peer = ?self.address, %stream, %refusal, "a stream of several");
            self.receive(Input::Media(MediaEvent::Parted { ticket }));
        }
    }

    async fn open_ports(&mut self, wire: &Wire, ticket: Ticket, remote: [u16; 2]) -> Result<[u16; 2], Refusal> {
        let peer = self.address.map(|address| address.ip());
        let Some(ends) = wire.local_ip().zip(peer) else {
            return Err(Refusal::Unavailable("packets go beside TCP alone".to_owned()));
        };
        self.media().open(ends, ticket, remote).await
    }

    async fn admit(&mut self, ticket: Ticket, claim: Claim) {
        let locks = self.services.locks();
        let admitted = locks.admit(&self.adapter.info, self.language.row.name(), self.address, &claim).await;
        let outcome = admitted.map(|Admitted { identity, stay }| {
            self.stay = stay;
            identity
        });
        match &outcome {
            Ok(identity) => {
                self.admitted = true;
                self.identity = Some(identity.clone());
            }
            Err(refusal) => {
                self.services.metrics.refused(&self.adapter.info.name, crate::intake::reason(refusal));
                debug!(peer = ?self.address, adapter = %self.adapter.info.name, %refusal, "not admitted");
            }
        }
        self.receive(Input::Admission { ticket, outcome });
    }

    async fn speaks(&mut self, by: &Identity, device: &str, product: Option<&str>) {
        if !by.reaches(device) {
            return;
        }
        let devices = self.services.intake.devices();
        // An ordinary client that is no device is no fault: only a declared thing, or a product named, makes a thing.
        let found = match product {
            Some(_) => devices.resolve(&self.adapter.info, device, product).ok(),
            None => devices.find(&self.adapter.info, device),
        };
        let Some(thing) = found else { return };
        let line = line(&mut self.line, &self.adapter);
        line.note(Arc::clone(&thing));
        if let Err(refusal) = self.services.intake.arrive(&thing, &line.route, clock::now_us()).await {
            debug!(%device, %refusal, "could not say that a device came online");
        }
        self.services.intake.came(&thing);
    }

    async fn report(&mut self, ticket: Option<Ticket>, by: &Identity, report: Report) {
        let mut need = Need::default();
        let outcome = self.take(by, report, &mut need.bus).await;
        self.promise(ticket, need, outcome);
    }

    async fn take(&mut self, by: &Identity, report: Report, need: &mut [u64; 4]) -> Result<(), Refusal> {
        let device = report.device.clone();
        let line = line(&mut self.line, &self.adapter);
        let taken = self.services.intake.take(&self.adapter.info, by, report, Some(&line.route)).await?;
        if !line.knows(&device)
            && let Some(thing) = self.services.intake.devices().find(&self.adapter.info, &device)
        {
            line.note(thing);
        }
        if let Some(Appended { class, seq }) = taken
            && let Some(need) = need.get_mut(usize::from(class.number()))
        {
            *need = (*need).max(seq);
        }
        Ok(())
    }

    /// Answers the ticket now (refused, or nothing to wait for) or when the disk has it.
    fn promise(&mut self, ticket: Option<Ticket>, need: Need, outcome: Result<(), Refusal>) {
        let Some(ticket) = ticket else { return };
        if outcome.is_ok() && need != Need::default() && self.unsettled.is_full() {
            // The session announced more room than it has: a defect, kept from growing without bound.
            self.receive(Input::Settled { ticket, outcome: Err(Refusal::Limit("too much at a time".to_owned())) });
        } else if outcome.is_ok() && (need != Need::default() || !self.unsettled.is_empty()) {
            self.unsettled.push(ticket, need);
        } else {
            self.receive(Input::Settled { ticket, outcome });
        }
    }

    pub(super) async fn exchange(&mut self, request: Request) {
        match request {
            // Boxed: what it takes to get in is not carried along by a connection that is in.
            Request::Attach { .. } => match Box::pin(self.services.broker.attach(request, &self.adapter.info)).await {
                Ok((attachment, event)) => {
                    self.attachment = Some(attachment);
                    self.receive(Input::Exchange(event));
                }
                Err(event) => self.receive(Input::Exchange(event)),
            },
            Request::Publish { ticket, publication, reports, packet_id } => {
                self.publish(ticket, publication, reports, packet_id).await;
            }
            other => {
                let Some(attachment) = &mut self.attachment else { return };
                if let Some(event) = attachment.request(other).await {
                    self.receive(Input::Exchange(event));
                }
            }
        }
    }

    async fn publish(
        &mut self,
        ticket: Option<Ticket>,
        publication: Publication,
        reports: Vec<Report>,
        packet_id: Option<u16>,
    ) {
        let mut need = Need::default();
        let mut outcome = Ok(());
        let by = self.identity.clone().unwrap_or_else(Identity::anonymous);
        for report in reports {
            let taken = self.take(&by, report, &mut need.bus).await;
            outcome = outcome.and(taken);
        }
        // What is refused is not passed on either: its publisher may send it again.
        if outcome.is_ok()
            && let Some(attachment) = &mut self.attachment
        {
            match attachment.publish(publication, packet_id).await {
                Ok(published) => need.broker = published.kept,
                Err(refusal) => outcome = Err(refusal),
            }
        }
        self.promise(ticket, need, outcome);
    }
}

/// The line of a session that speaks for devices.
fn line<'a>(line: &'a mut Option<Box<Line>>, adapter: &Adapter) -> &'a mut Line {
    line.get_or_insert_with(|| Box::new(Line::new(&adapter.info.name)))
}
