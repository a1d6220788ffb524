//! The console: status page, API, live feed, metrics, health; the one owner of axum.
//!
//! `parts.rs` what it is given; `guard.rs` who may; `door.rs` connections and their deadlines; `api.rs` the routes,
//! `orders.rs` those to things, `streams.rs` those of streams; `webrtc.rs` WHEP and WHIP; `live.rs` the live feed; `page.rs` the page's files;
//! `wiring.rs` the views read off the gateway's parts. Must not be in here: anything that decides for the gateway.

mod api;
mod door;
mod guard;
mod live;
mod orders;
mod page;
pub mod parts;
mod problem;
mod recordings;
mod streams;
mod webrtc;
mod wiring;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use self::guard::{Guard, Need, TOKEN_LEN_MAX};
use self::live::Feed;
pub use self::parts::Parts;
use self::problem::Problem;
use crate::config;
use crate::metrics::Figure;
use crate::threads::Tasks;
use crate::tls::ServerTls;

/// Why the console cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("admin.listen = \"{listen}\": cannot listen there")]
    Bind { listen: String, source: io::Error },
    #[error("admin.token_file = \"{file}\": cannot be read")]
    Token { file: String, source: io::Error },
    #[error("admin.token_file = \"{file}\": must hold one line of 16 to {TOKEN_LEN_MAX} printable ASCII characters")]
    TokenForm { file: String },
}

/// What every handler is given. Cheap to clone.
#[derive(Debug, Clone)]
struct Console {
    parts: Arc<Parts>,
    guard: Guard,
    feed: Feed,
    started: Instant,
    started_us: i64,
    orders: Arc<AtomicU64>,
    tasks: Tasks,
}

/// Starts the console where `config.listen` says; `None` when it says nowhere. It ends with `tasks`.
///
/// With a certificate it speaks https alone.
pub async fn start(
    config: &config::Admin,
    tls: Option<ServerTls>,
    parts: Parts,
    tasks: &Tasks,
) -> Result<Option<SocketAddr>, AdminError> {
    if config.listen.is_empty() {
        return Ok(None);
    }
    let token = config.token_file.as_deref().map(read_token).transpose()?;
    let bind = |source| AdminError::Bind { listen: config.listen.clone(), source };
    let listener = TcpListener::bind(&config.listen).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    let secure = tls.map(|tls| door::Secure { tls, tasks: tasks.clone(), metrics: parts.metrics.clone() });
    let router = router(Console {
        feed: Feed::new(parts.metrics.clone(), tasks.clone()),
        parts: Arc::new(parts),
        guard: Guard::new(token.as_deref()),
        started: Instant::now(),
        started_us: crate::clock::now_us(),
        orders: Arc::default(),
        tasks: tasks.clone(),
    });
    let stopping = tasks.clone();
    let service = router.into_make_service_with_connect_info::<door::From>();
    let serve = axum::serve(door::Door::new(listener, secure), service)
        .with_graceful_shutdown(async move { stopping.stopping().await });
    tasks.spawn("console", async move {
        if let Err(error) = serve.await {
            tracing::warn!(%error, "the console ended");
        }
    });
    Ok(Some(address))
}

fn router(console: Console) -> Router {
    let mut router = Router::new();
    for route in api::routes() {
        router = router.route(route.path, route.handler);
    }
    for (path, handler) in webrtc::routes() {
        router = router.route(path, handler);
    }
    for asset in page::ASSETS {
        router = router.route(asset.path, get(move |headers: HeaderMap| async move { asset.answer(&headers) }));
    }
    router
        .fallback(|| async { Problem::not_found("such path") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path has no such method")
        })
        .layer(DefaultBodyLimit::max(api::BODY_MAX))
        .layer(middleware::from_fn_with_state(console.clone(), admit))
        .with_state(console)
}

/// Lets a request in or turns it away, and says to browsers what the answer may do.
async fn admit(
    State(console): State<Console>,
    ConnectInfo(door::From { peer, .. }): ConnectInfo<door::From>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let policy = page::content_policy(request.headers());
    // A stream's keys decide about these, not the console's token.
    let checked = if webrtc::owns(path) {
        Ok(())
    } else {
        let signed = || recordings::is_signed(&console, request.method(), request.uri());
        let need = if need(path) == Need::Token && signed() { Need::Nothing } else { need(path) };
        console.guard.check(peer, request.method(), request.headers(), need)
    };
    let mut response = match checked {
        Ok(()) => next.run(request).await,
        Err(turned) => {
            console.parts.metrics.add(Figure::AdminRefused, &[turned.reason], 1);
            turned.problem.into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// The page's files and the health need no token; everything else does, paths that do not exist included.
fn need(path: &str) -> Need {
    let open = page::ASSETS.iter().any(|asset| asset.path == path) || api::OPEN.contains(&path);
    if open { Need::Nothing } else { Need::Token }
}

fn read_token(file: &Path) -> Result<String, AdminError> {
    let named = || file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|source| AdminError::Token { file: named(), source })?;
    let token = text.trim();
    let plain = (16..=TOKEN_LEN_MAX).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic());
    if plain { Ok(token.to_owned()) } else { Err(AdminError::TokenForm { file: named() }) }
}

impl Console {
    /// The next order's id, unlike any other of this run.
    fn next_order(&self) -> String {
        format!("api-{:x}-{}", self.started_us, self.orders.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests;
