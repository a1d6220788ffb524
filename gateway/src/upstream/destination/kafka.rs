//! Kafka: a publication is a record of one topic, confirmed by all replicas in sync (acks = all). The only file that
//! names rskafka.
//!
//! rskafka is in pure Rust, keeps to ring, speaks SASL, finds new leaders by itself, and brings neither a C library nor
//! threads. What it lacks is Kafka's idempotent producer, so a record may come twice after a lost connection. It would not
//! help much: a producer's id ends with its session, while ours repeats across restarts. A consumer tells the second by
//! the record's headers, which stay the same. Compression is the native dialect's, so none of rskafka's is built in.
//!
//! Records of one thing have its id for key and go to the partition that Kafka's own clients would choose for it. To a
//! partition there is one request at a time, so that its order holds; partitions go side by side. Catalogs go to a topic
//! of their own. Topics are the platform's: this makes none, and says so when one is missing.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rskafka::BackoffConfig;
use rskafka::chrono::DateTime;
use rskafka::client::error::{Error, ProtocolError};
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder, Credentials, SaslConfig};
use rskafka::record::Record;
use tokio::sync::mpsc;
use tracing::debug;

use super::courier::{Courier, Order};
use super::{Event, LinkError, Publication, Settings, Soon};
use crate::clock;
use crate::config::Sasl;
use crate::threads::Tasks;

/// From the first connection to the partitions of the topics.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// For the answer to a question beside the records.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long a request is tried again by itself: a partition finds its next leader within.
const RETRY_MAX: Duration = Duration::from_secs(8);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Records of one request, together. Brokers take a mebibyte unless they are told otherwise.
const REQUEST_BYTES_MAX: usize = 512 << 10;
/// The largest answer that is read: one that lists all topics of a cluster.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Signs of life between two looks at the number of partitions.
const SIGNS: u32 = 10;
/// What a catalog's topic has behind the topic's name.
const CATALOGS: &str = ".model";

/// A partition: topic and number.
type Spot = (Arc<str>, i32);

/// The way to one partition.
#[derive(Default)]
struct Road {
    leader: Option<Arc<PartitionClient>>,
    waiting: VecDeque<(u64, Record)>,
    under_way: Option<Soon<'static, Outcome>>,
    /// So many go one by one: together they were too large.
    singly: usize,
}

/// What became of one request.
struct Outcome {
    tokens: Vec<u64>,
    /// The records, where there were several.
    records: Vec<Record>,
    leader: Result<Arc<PartitionClient>, Error>,
    produced: Result<(), Error>,
}

struct Producer {
    cluster: Arc<Client>,
    topic: Arc<str>,
    catalogs: Arc<str>,
    /// By topic.
    partitions: BTreeMap<Arc<str>, i32>,
    roads: BTreeMap<Spot, Road>,
}

pub(super) fn open(settings: &Settings, tasks: &Tasks) -> Result<Courier, LinkError> {
    let name = settings.place.topic().ok_or_else(|| LinkError::Unsupported("no Kafka topic".to_owned()))?;
    let (topic, catalogs) = (Arc::from(name), Arc::from(format!("{name}{CATALOGS}")));
    let mut builder = ClientBuilder::new(settings.place.authorities())
        .client_id(settings.client_id.as_str())
        .max_message_size(ANSWER_BYTES_MAX)
        .backoff_config(BackoffConfig {
            init_backoff: PAUSE_MIN,
            max_backoff: PAUSE_MAX,
            base: 2.0,
            deadline: Some(RETRY_MAX),
        });
    if let Some(trust) = &settings.trust {
        builder = builder.tls_config(trust.client_config()?);
    }
    let mut proof = String::new();
    if let Some((name, password)) = &settings.credentials {
        let credentials = Credentials::new(name.clone(), password.clone());
        let sasl = match settings.sasl {
            Sasl::Plain => SaslConfig::Plain(credentials),
            Sasl::ScramSha256 => SaslConfig::ScramSha256(credentials),
            Sasl::ScramSha512 => SaslConfig::ScramSha512(credentials),
        };
        proof = format!("SASL {} as `{name}`", mechanism(settings.sasl));
        builder = builder.sasl_config(sasl);
    }
    let places = settings.place.authorities().join(", ");
    let (pause, has_catalogs) = (settings.keep_alive, settings.content_type != "application/json");
    Ok(Courier::start("kafka upstream", tasks, settings.window, |orders, events| async move {
        let connect = Producer::connect(builder, topic, catalogs, has_catalogs);
        let talk = match tokio::time::timeout(CONNECT_MAX, connect).await {
            Ok(Ok(producer)) => producer.talk(pause, orders, &events).await,
            Ok(Err(reason)) => Err(reason),
            Err(_) => Err(format!("no answer within {CONNECT_MAX:?}")),
        };
        if let Err(reason) = talk.map_err(|reason| plainly(reason, &places, &proof)) {
            // Whoever asked may be gone.
            drop(events.send(Event::Down { reason, rest: None }).await);
        }
    }))
}

// === impl Producer ===

impl Producer {
    async fn connect(
        builder: ClientBuilder,
        topic: Arc<str>,
        catalogs: Arc<str>,
        has_catalogs: bool,
    ) -> Result<Self, String> {
        let cluster = Arc::new(builder.build().await.map_err(|error| said(&error))?);
        let (partitions, roads) = (BTreeMap::new(), BTreeMap::new());
        let mut producer = Self { cluster, topic, catalogs, partitions, roads };
        let mut wanted = vec![Arc::clone(&producer.topic)];
        wanted.extend(has_catalogs.then(|| Arc::clone(&producer.catalogs)));
        for topic in &wanted {
            // Where brokers make topics by themselves, this is what makes them do it.
            let leader = producer.cluster.partition_client(topic.as_ref(), 0, UnknownTopicHandling::Error).await;
            let leader = Some(Arc::new(leader.map_err(|error| missing(topic, &error))?));
            producer.roads.insert((Arc::clone(topic), 0), Road { leader, ..Road::default() });
        }
        producer.partitions = partitions_of(&producer.cluster, &wanted).await?;
        Ok(producer)
    }

    /// Until the owner lets go (`Ok`) or the connection is over.
    async fn talk(
        mut self,
        pause: Duration,
        mut orders: mpsc::Receiver<Order>,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), String> {
        let mut told = vec![Event::Up { packet_max: None }];
        let mut signs = self.signs(pause);
        loop {
            for event in told.drain(..) {
                if events.send(event).await.is_err() {
                    return Ok(());
                }
            }
            for (spot, road) in &mut self.roads {
                road.start(&self.cluster, spot);
            }
            tokio::select! {
                order = orders.recv() => match order {
                    None => return Ok(()),
                    Some(Order::Send { token, publication }) => self.take(token, publication),
                    Some(Order::Subscribe(filter)) => debug!(filter, "a producer has no way down"),
                },
                (spot, outcome) = next(&mut self.roads) => {
                    if let Some(road) = self.roads.get_mut(&spot) {
                        told = road.heard(&spot, outcome)?;
                    }
                }
                partitions = &mut signs => {
                    self.partitions = partitions?;
                    signs = self.signs(pause);
                }
            }
        }
    }

    /// Asks for a sign of life now and then; ends with the partitions there are by then.
    fn signs(&self, pause: Duration) -> Soon<'static, Result<BTreeMap<Arc<str>, i32>, String>> {
        let (cluster, topics) = (Arc::clone(&self.cluster), self.partitions.keys().cloned().collect::<Vec<_>>());
        let leader = self.roads.values().find_map(|road| road.leader.clone());
        let answer = move || async move {
            for _ in 0..SIGNS {
                tokio::time::sleep(pause).await;
                if let Some(leader) = &leader {
                    let asked = tokio::time::timeout(ANSWER_MAX, leader.get_offset(OffsetAt::Latest)).await;
                    asked.map_err(|_| "no sign of life".to_owned())?.map_err(|error| said(&error))?;
                }
            }
            let asked = tokio::time::timeout(ANSWER_MAX, partitions_of(&cluster, &topics)).await;
            asked.map_err(|_| "no sign of life".to_owned())?
        };
        Box::pin(answer())
    }

    fn take(&mut self, token: u64, publication: Publication) {
        let catalog = publication.origin.is_none();
        let topic = Arc::clone(if catalog { &self.catalogs } else { &self.topic });
        let record = record(publication);
        let count = self.partitions.get(&topic).copied().unwrap_or(1);
        let partition = partition(record.key.as_deref().unwrap_or_default(), count);
        self.roads.entry((topic, partition)).or_default().waiting.push_back((token, record));
    }
}

// === impl Road ===

impl Road {
    /// Sends what waits, as much as goes at once, unless something is under way.
    fn start(&mut self, cluster: &Arc<Client>, spot: &Spot) {
        if self.under_way.is_some() {
            return;
        }
        let (mut tokens, mut records, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some((token, record)) = self.waiting.pop_front() {
            bytes += record.approximate_size();
            if !tokens.is_empty() && (self.singly > 0 || bytes > REQUEST_BYTES_MAX) {
                self.waiting.push_front((token, record));
                break;
            }
            tokens.push(token);
            records.push(record);
        }
        if tokens.is_empty() {
            return;
        }
        self.singly = self.singly.saturating_sub(1);
        let (cluster, spot, leader) = (Arc::clone(cluster), spot.clone(), self.leader.clone());
        self.under_way = Some(Box::pin(produce(cluster, spot, leader, tokens, records)));
    }

    /// What there is to tell of a request; `Err`: the connection is over.
    fn heard(&mut self, (topic, _): &Spot, outcome: Outcome) -> Result<Vec<Event>, String> {
        let Outcome { tokens, records, leader, produced } = outcome;
        self.leader = Some(leader.map_err(|error| missing(topic, &error))?);
        let Err(error) = produced else { return Ok(tokens.into_iter().map(Event::Confirmed).collect()) };
        if !is_final(&error) {
            return Err(missing(topic, &error));
        }
        if let [token] = tokens.as_slice() {
            return Ok(vec![Event::Refused { token: *token, reason: said(&error) }]);
        }
        self.singly = records.len();
        for one in tokens.into_iter().zip(records).rev() {
            self.waiting.push_front(one);
        }
        Ok(Vec::new())
    }
}

async fn produce(
    cluster: Arc<Client>,
    (topic, partition): Spot,
    leader: Option<Arc<PartitionClient>>,
    tokens: Vec<u64>,
    records: Vec<Record>,
) -> Outcome {
    let leader = match leader {
        Some(leader) => Ok(leader),
        None => cluster.partition_client(&*topic, partition, UnknownTopicHandling::Error).await.map(Arc::new),
    };
    let kept = if records.len() > 1 { records.clone() } else { Vec::new() };
    let produced = match &leader {
        Ok(leader) => leader.produce(records, Compression::NoCompression).await.map(|_offsets| ()),
        Err(_) => Ok(()),
    };
    Outcome { tokens, records: kept, leader, produced }
}

/// The next request that is answered; never while none is under way.
async fn next(roads: &mut BTreeMap<Spot, Road>) -> (Spot, Outcome) {
    poll_fn(|cx| {
        for (spot, road) in &mut *roads {
            let Some(under_way) = &mut road.under_way else { continue };
            if let Poll::Ready(outcome) = under_way.as_mut().poll(cx) {
                road.under_way = None;
                return Poll::Ready((spot.clone(), outcome));
            }
        }
        Poll::Pending
    })
    .await
}

/// How many partitions each topic has.
async fn partitions_of(cluster: &Client, wanted: &[Arc<str>]) -> Result<BTreeMap<Arc<str>, i32>, String> {
    let topics = cluster.list_topics().await.map_err(|error| said(&error))?;
    let count = |topic: &Arc<str>| {
        let found = topics.iter().find(|known| known.name == **topic);
        let count = found.map(|known| i32::try_from(known.partitions.len()).unwrap_or(i32::MAX));
        let count = count.filter(|count| *count > 0).ok_or_else(|| format!("nobody lists the topic `{topic}`"))?;
        Ok((Arc::clone(topic), count))
    };
    wanted.iter().map(count).collect()
}

/// The key is the thing's id; the gateway's where a record is of several things or of none, and a catalog's own name.
fn record(publication: Publication) -> Record {
    let Publication { topic, payload, origin, .. } = publication;
    let mut named = vec![("sluicegate-topic", topic.clone())];
    let key = match &origin {
        None => topic,
        Some(origin) => {
            let (first, last) = (origin.first, origin.last);
            let numbers = if last > first { format!("{first}-{last}") } else { first.to_string() };
            named.extend([
                ("sluicegate-gateway", origin.gateway.to_string()),
                ("sluicegate-epoch", format!("{:016x}", origin.epoch)),
                ("sluicegate-class", origin.class.topic().to_owned()),
                ("sluicegate-seq", numbers),
            ]);
            origin.thing.as_ref().unwrap_or(&origin.gateway).to_string()
        }
    };
    Record {
        key: Some(key.into_bytes()),
        value: Some(payload),
        headers: named.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect(),
        timestamp: DateTime::from_timestamp_micros(clock::now_us()).unwrap_or_default(),
    }
}

/// Whether the same records will never be taken.
const fn is_final(error: &Error) -> bool {
    use ProtocolError::{InvalidRecord, MessageTooLarge, RecordListTooLarge};
    matches!(error, Error::ServerError { protocol_error: MessageTooLarge | RecordListTooLarge | InvalidRecord, .. })
}

fn missing(topic: &str, error: &Error) -> String {
    let unknown = ProtocolError::UnknownTopicOrPartition;
    match error {
        Error::ServerError { protocol_error, .. } if *protocol_error == unknown => {
            format!("the brokers have no topic `{topic}`: create it")
        }
        error => said(error),
    }
}

/// The mechanism's registered name.
const fn mechanism(sasl: Sasl) -> &'static str {
    match sasl {
        Sasl::Plain => "PLAIN",
        Sasl::ScramSha256 => "SCRAM-SHA-256",
        Sasl::ScramSha512 => "SCRAM-SHA-512",
    }
}

/// A refusal of the proof, which rskafka buries among its tries, in words of its own: its types cannot be told apart from
/// here.
fn plainly(reason: String, places: &str, proof: &str) -> String {
    if reason.contains("SaslAuthenticationFailed") {
        format!("{places}: the broker refuses {proof}: wrong name or password")
    } else if reason.to_lowercase().replace(' ', "").contains("unsupportedsaslmechanism") {
        format!("{places}: the broker does not take {proof}: it has other mechanisms")
    } else {
        reason
    }
}

fn said(error: &Error) -> String {
    match error {
        Error::ServerError { protocol_error, .. } => format!("the broker answers {protocol_error:?}"),
        error => error.to_string(),
    }
}

/// The partition that Kafka's own clients choose for a key.
fn partition(key: &[u8], count: i32) -> i32 {
    (murmur2(key) & i32::MAX).checked_rem(count).unwrap_or_default()
}

/// 32-bit MurmurHash2 with the seed of Kafka's default partitioner (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> i32 {
    const MULTIPLIER: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let word = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        let word = (word ^ (word >> 24)).wrapping_mul(MULTIPLIER);
        hash = hash.wrapping_mul(MULTIPLIER) ^ word;
    }
    if !rest.is_empty() {
        let rest = rest.iter().rev().fold(0, |sum, byte| (sum << 8) | u32::from(*byte));
        hash = (hash ^ rest).wrapping_mul(MULTIPLIER);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(MULTIPLIER);
    (hash ^ (hash >> 15)).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn keys_hash_as_kafkas_own_clients_hash_them() {
        for (key, expected) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()), expected, "{key}");
        }
        assert!((0..4).contains(&partition(b"a", 4)));
        assert_eq!(partition(b"a", 0), 0);
    }
}
