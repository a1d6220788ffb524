//! Simulated devices without MQTT: a meter over CoAP, a tracker over TCP and a climate sensor over UDP in JSON lines.

use std::f64::consts::TAU;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::course::{Course, round};
use super::devices::electricity;
use super::{ANSWER_MAX, Counts, SimError};

const TEMPERATURE: Course = Course { mean: 11.5, swing: 0.8, period: 110.0, noise: 0.1 };
const HUMIDITY: Course = Course { mean: 71.0, swing: 4.0, period: 140.0, noise: 0.5 };
/// The tracker drives round and round: centre in degrees, radius in km, seconds a round.
const CENTRE: (f64, f64) = (52.5163, 13.3777);
const RADIUS_KM: f64 = 1.2;
const ROUND_SECONDS: f64 = 480.0;
const DEGREE_KM: f64 = 111.32;

/// A meter over CoAP: one confirmable POST every two seconds.
pub(super) async fn coap_meter(address: SocketAddr, id: &str, counts: Counts) -> Result<(), SimError> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(address).await?;
    let mut clock = interval(Duration::from_secs(2));
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut energy = 310.25;
    for step in 0_u64.. {
        clock.tick().await;
        let body = Json::Object(electricity(step + 25, &mut energy, 2.0)).to_string();
        let message_id = step as u16;
        counts.note_sent();
        post(&socket, message_id, &["things", id, "properties"], body.as_bytes()).await?;
        counts.note_acknowledged();
    }
    Ok(())
}

/// A confirmable POST of JSON (RFC 7252), sent again until it is answered with 2.04.
async fn post(socket: &UdpSocket, message_id: u16, path: &[&str], body: &[u8]) -> Result<(), SimError> {
    // Version 1, confirmable, token of 2 bytes; POST.
    let mut request = BytesMut::from(&[0x42, 0x02][..]);
    request.put_u16(message_id);
    request.put_u16(message_id);
    let mut before = 0_u8;
    for segment in path {
        // Uri-Path is option 11; segments here are shorter than 13 bytes.
        request.put_u8((11 - before) << 4 | (segment.len() as u8 & 0x0f));
        request.put_slice(segment.as_bytes());
        before = 11;
    }
    // Content-Format, option 12, one byte: 50, JSON.
    request.put_slice(&[0x11, 50, 0xff]);
    request.put_slice(body);
    let mut patience = Duration::from_secs(2);
    let answered = async {
        let mut buffer = [0; 1500];
        loop {
            socket.send(&request).await?;
            let taken = timeout(patience, answer(socket, message_id, &mut buffer)).await;
            match taken {
                Ok(answer) => return answer,
                Err(_) => patience *= 2,
            }
        }
    };
    timeout(ANSWER_MAX * 4, answered).await.map_err(|_| SimError::Silent)?
}

/// Waits for the response with our token; a confirmable one is acknowledged.
async fn answer(socket: &UdpSocket, token: u16, buffer: &mut [u8]) -> Result<(), SimError> {
    loop {
        let len = socket.recv(buffer).await?;
        let &[first, code, id_high, id_low, token_high, token_low, ..] = buffer.get(..len).unwrap_or_default() else {
            // An empty acknowledgement: the response follows.
            continue;
        };
        if first & 0x0f != 2 || u16::from_be_bytes([token_high, token_low]) != token || code == 0 {
            continue;
        }
        if first & 0x30 == 0 {
            socket.send(&[0x60, 0, id_high, id_low]).await?;
        }
        let (class, detail) = (code >> 5, code & 0x1f);
        return if class == 2 { Ok(()) } else { Err(SimError::Refused(format!("{class}.{detail:02}"))) };
    }
}

/// A tracker over TCP: one line a second; the gateway answers each once it is on disk.
pub(super) async fn tracker(address: SocketAddr, id: &str, counts: Counts) -> Result<(), SimError> {
    let (read, mut write) = TcpStream::connect(address).await?.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut clock = interval(Duration::from_secs(1));
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut step = 0_u64;
    loop {
        tokio::select! {
            _ = clock.tick() => {
                let line = format!("{}\n", position(id, step));
                write.write_all(line.as_bytes()).await?;
                counts.note_sent();
                step += 1;
            }
            line = lines.next_line() => match line? {
                Some(answer) if answer.contains("\"ok\":true") => counts.note_acknowledged(),
                Some(answer) => return Err(SimError::Refused(answer)),
                None => return Ok(()),
            },
        }
    }
}

fn position(id: &str, step: u64) -> Json {
    let angle = step as f64 / ROUND_SECONDS * TAU;
    let (north, east) = (RADIUS_KM * angle.cos(), RADIUS_KM * angle.sin());
    let km_a_second = RADIUS_KM * TAU / ROUND_SECONDS;
    json!({
        "device": id,
        "latitude": round(CENTRE.0 + north / DEGREE_KM, 6),
        "longitude": round(CENTRE.1 + east / DEGREE_KM / CENTRE.0.to_radians().cos(), 6),
        "speed": round(km_a_second * 3600.0, 1),
        // Clockwise from north: the tangent of the circle.
        "heading": round((angle.to_degrees() + 90.0) % 360.0, 1) % 360.0,
        "satellites": 9 + step / 30 % 4,
        "mileage": round(20_481.0 + step as f64 * km_a_second, 1),
        "ignition": true,
    })
}

/// A climate sensor over UDP: one packet a second; nobody answers.
pub(super) async fn udp_climate(address: SocketAddr, id: &str, counts: Counts) -> Result<(), SimError> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(address).await?;
    let mut clock = interval(Duration::from_secs(1));
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for step in 0_u64.. {
        clock.tick().await;
        let packet = json!({
            "device": id, "temperature": TEMPERATURE.at(step, 1), "humidity": HUMIDITY.at(step, 1), "signal": -71,
        });
        socket.send(format!("{packet}\n").as_bytes()).await?;
        counts.note_sent();
    }
    Ok(())
}
