//! A light HTTP/1.1 client: one server, `http` or `https`, a few kept connections, no task of its own. The one owner of
//! hyper's client.
//!
//! A connection is driven while a request is on it; one that the server closed meanwhile is noticed before the next use.
//! Redirects are not followed: who posts secrets does not post them elsewhere. Must not be in here: what is posted, and
//! how often it is tried again.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tls::{TlsError, Trust};

/// Bytes of an answer's body that are read; a longer one is an error.
pub const ANSWER_MAX: usize = 64 * 1024;

/// Idle connections kept; more are closed after their request.
const KEPT_MAX: usize = 4;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("`{url}`: {why}; write http://HOST[:PORT]/PATH or https://…")]
    Url { url: String, why: String },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot connect to {authority}: {source}")]
    Connect { authority: String, source: std::io::Error },
    #[error("the request cannot be said: {0}")]
    Request(hyper::http::Error),
    #[error("no answer: {0}")]
    Hyper(#[from] hyper::Error),
    #[error("no answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("no answer within {} ms", .0.as_millis())]
    Patience(Duration),
}

/// A server's answer, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// `Retry-After` in seconds (RFC 9110, 10.2.3). A date is not read: the box's clock may be anything.
    pub retry_after: Option<Duration>,
    /// At most [`ANSWER_MAX`] bytes.
    pub body: Bytes,
}

impl Answer {
    /// 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Posts to one URL.
pub struct Client {
    authority: String,
    host: String,
    port: u16,
    /// Path and query.
    path: String,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    kept: Mutex<Vec<Kept>>,
}

impl Client {
    /// The URL is checked and certificates are read here; nothing is connected yet.
    pub fn new(url: &str, trust: &Trust) -> Result<Self, HttpError> {
        let error = |why: &str| HttpError::Url { url: shown(url).to_owned(), why: why.to_owned() };
        let uri: Uri = url.parse().map_err(|_| error("not a URL"))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| error("it names no host"))?;
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        if authority.contains('@') {
            return Err(error("user and password do not belong into a URL"));
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let (tls, port) = match uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => {
                let name = ServerName::try_from(bare.clone()).map_err(|_| error("not a host's name"))?;
                (Some((trust.client_config()?, name)), 443)
            }
            _ => return Err(error("unknown scheme")),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let port = uri.port_u16().unwrap_or(port);
        Ok(Self { authority, host: bare, port, path, tls, kept: Mutex::default() })
    }

    /// Posts a body; `query` is added to the URL's own, `headers` go beside `Host`, `User-Agent` and `Content-Type`.
    ///
    /// All of it, connecting included, takes at most `patience`. A kept connection that turns out to be dead is replaced
    /// once, so that the server may get the same body twice.
    pub async fn post(
        &self,
        query: &str,
        content_type: &str,
        headers: &[(&str, &str)],
        body: Bytes,
        patience: Duration,
    ) -> Result<Answer, HttpError> {
        let talk = async {
            if let Some(mut kept) = self.take().await
                && let Ok(answer) = kept.exchange(self.request(query, content_type, headers, body.clone())?).await
            {
                self.keep(kept);
                return Ok(answer);
            }
            let mut fresh = self.connect().await?;
            let answer = fresh.exchange(self.request(query, content_type, headers, body)?).await?;
            self.keep(fresh);
            Ok(answer)
        };
        tokio::time::timeout(patience, talk).await.unwrap_or(Err(HttpError::Patience(patience)))
    }

    /// Sees that there is a connection to post on.
    pub async fn warm(&self, patience: Duration) -> Result<(), HttpError> {
        let ready = async {
            let kept = match self.take().await {
                Some(kept) => kept,
                None => self.connect().await?,
            };
            self.keep(kept);
            Ok(())
        };
        tokio::time::timeout(patience, ready).await.unwrap_or(Err(HttpError::Patience(patience)))
    }

    fn request(
        &self,
        query: &str,
        content_type: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, HttpError> {
        let target = match (query, self.path.contains('?')) {
            ("", _) => self.path.clone(),
            (query, false) => format!("{}?{query}", self.path),
            (query, true) => format!("{}&{query}", self.path),
        };
        let mut request = Request::post(target)
            .header(HOST, &self.authority)
            .header(USER_AGENT, "sluicegate")
            .header(CONTENT_TYPE, content_type);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body)).map_err(HttpError::Request)
    }

    async fn connect(&self) -> Result<Kept, HttpError> {
        let failed = |source| HttpError::Connect { authority: self.authority.clone(), source };
        let socket = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        let io: Box<dyn Io> = match &self.tls {
            None => Box::new(socket),
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name.clone(), socket).await.map_err(failed)?)
            }
        };
        let (sender, connection) = handshake(TokioIo::new(io)).await?;
        Ok(Kept { sender, connection: Box::pin(connection), ended: false })
    }

    /// A kept connection that the server has not closed.
    async fn take(&self) -> Option<Kept> {
        loop {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            let ended = std::future::poll_fn(|cx| Poll::Ready(kept.connection.as_mut().poll(cx).is_ready())).await;
            if !ended && !kept.sender.is_closed() {
                return Some(kept);
            }
        }
    }

    fn keep(&self, connection: Kept) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.ended && !connection.sender.is_closed() && kept.len() < KEPT_MAX {
            kept.push(connection);
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// A URL without its query, which may hold secrets.
pub fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// One connection.
struct Kept {
    sender: SendRequest<Full<Bytes>>,
    /// What moves its bytes.
    connection: Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>,
    ended: bool,
}

impl Kept {
    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, HttpError> {
        let sender = &mut self.sender;
        let mut answer = std::pin::pin!(async move {
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let retry_after =
                response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(HttpError::Body)?;
            let retry_after = retry_after.map(Duration::from_secs);
            Ok(Answer { status, retry_after, body: body.to_bytes() })
        });
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            // Closed, with or without the answer: the other future knows.
            _closed = &mut self.connection => self.ended = true,
        }
        answer.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A server that gives these answers, each connection `per_connection` of them, and hands back what it heard.
    async fn server(
        answers: Vec<&'static str>,
        per_connection: usize,
    ) -> (String, tokio::sync::mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?token=1", listener.local_addr().unwrap());
        let (heard, requests) = tokio::sync::mpsc::channel(16);
        let tasks = crate::threads::Tasks::new();
        tasks.spawn("server", async move {
            for answers in answers.chunks(per_connection) {
                let (mut socket, _) = listener.accept().await.unwrap();
                for answer in answers {
                    let mut text = String::new();
                    while !text.ends_with("body") {
                        let mut buffer = [0; 1024];
                        let read = socket.read(&mut buffer).await.unwrap();
                        assert!(read > 0, "the client left: {text}");
                        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
                    }
                    heard.send(text).await.unwrap();
                    socket.write_all(answer.as_bytes()).await.unwrap();
                }
            }
            // What comes after is not accepted.
            std::future::pending::<()>().await;
        });
        (url, requests)
    }

    async fn post(client: &Client, query: &str, patience: Duration) -> Result<Answer, HttpError> {
        client.post(query, "application/json", &[("X-More", "yes")], Bytes::from_static(b"body"), patience).await
    }

    #[tokio::test]
    async fn a_post_carries_both_queries_and_its_headers_and_the_connection_is_kept() {
        let answer = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok";
        let (url, mut heard) = server(vec![answer, answer], 2).await;
        let client = Client::new(&url, &Trust::default()).unwrap();
        for _ in 0..2 {
            let answer = post(&client, "key=a%20b", PATIENCE).await.unwrap();
            assert_eq!((answer.status, &answer.body[..], answer.is_success()), (201, &b"ok"[..], true));
            let text = heard.recv().await.unwrap();
            assert!(text.starts_with("POST /hook?token=1&key=a%20b HTTP/1.1\r\n"), "{text}");
            let text = text.to_lowercase();
            assert!(
                text.contains("\r\nx-more: yes\r\n") && text.contains("\r\ncontent-type: application/json\r\n"),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn a_connection_the_server_closed_is_replaced() {
        let answer = "HTTP/1.1 403 Forbidden\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n";
        let (url, _heard) = server(vec![answer, answer], 1).await;
        let client = Client::new(&url, &Trust::default()).unwrap();
        for _ in 0..2 {
            let answer = post(&client, "", PATIENCE).await.unwrap();
            assert_eq!((answer.status, answer.retry_after), (403, Some(Duration::from_secs(7))));
        }
    }

    #[tokio::test]
    async fn silence_and_endless_answers_are_errors() {
        let (url, _heard) = server(vec![""], 1).await;
        let client = Client::new(&url, &Trust::default()).unwrap();
        let error = post(&client, "", Duration::from_millis(50)).await.unwrap_err();
        assert!(error.to_string().contains("no answer"), "{error}");
        let long =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", ANSWER_MAX + 1, "x".repeat(ANSWER_MAX + 1));
        let (url, _heard) = server(vec![Box::leak(long.into_boxed_str())], 1).await;
        let client = Client::new(&url, &Trust::default()).unwrap();
        assert!(matches!(post(&client, "", PATIENCE).await, Err(HttpError::Body(_))));
        let nobody = Client::new("http://127.0.0.1:1/", &Trust::default()).unwrap();
        assert!(matches!(post(&nobody, "", PATIENCE).await, Err(HttpError::Connect { .. })));
    }

    #[test]
    fn urls_that_cannot_be_are_refused_without_their_secrets() {
        for url in ["", "hook", "ftp://h/x?key=sesame", "http://user:pass@h/", "http:///x?key=sesame"] {
            let error = Client::new(url, &Trust::default()).unwrap_err().to_string();
            assert!(error.contains("http://HOST") && !error.contains("sesame"), "{error}");
        }
        assert!(Client::new("https://[::1]:8443/x", &Trust::default()).is_ok());
    }
}
