//! A live page about runs: a small server that reads their files and changes nothing.

mod find;
mod site;

pub(crate) use site::Site;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HOST, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use site::Answer;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections that are served at a time; others are closed at once, so that nobody keeps the machine busy.
const CONNECTIONS: usize = 64;

/// How long a client may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the wish to stop is looked at.
const GLANCE: Duration = Duration::from_millis(100);

/// Scripts and styles of the page itself and nothing from elsewhere.
const POLICY: &str = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Answers on `listener` until `stop` is set.
///
/// # Errors
/// What the system says of the socket.
pub(crate) fn serve(listener: std::net::TcpListener, site: Site, stop: &AtomicBool) -> std::io::Result<()> {
    // One thread for all connections, and one that reads files: a run that trains here keeps its cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
    let site = Arc::new(site);
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let (listener, permits) = (TcpListener::from_std(listener)?, Arc::new(Semaphore::new(CONNECTIONS)));
        while !stop.load(Ordering::Relaxed) {
            let Ok(accepted) = tokio::time::timeout(GLANCE, listener.accept()).await else { continue };
            // Too many open files, a client that has gone: the next one may do better.
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(GLANCE).await;
                continue;
            };
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
            let site = Arc::clone(&site);
            tokio::spawn(async move {
                let service = service_fn(move |request| respond(Arc::clone(&site), request));
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                // A client that breaks off is no error of ours.
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
                drop(permit);
            });
        }
        Ok(())
    })
}

async fn respond(site: Arc<Site>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(response(&Answer::refused(405, "this page can only be read")));
    }
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(String::from);
    let (host, known) = (header(HOST), header(IF_NONE_MATCH));
    let (path, query) = (request.uri().path().to_string(), request.uri().query().unwrap_or_default().to_string());
    let answer = tokio::task::spawn_blocking(move || site.answer(host.as_deref(), &path, &query)).await;
    let answer = answer.unwrap_or_else(|_| Answer::refused(500, "this page could not be made"));
    Ok(if known.is_some() && known == answer.tag {
        response(&Answer { status: 304, body: Vec::new(), ..answer })
    } else {
        response(&answer)
    })
}

fn response(answer: &Answer) -> Response<Full<Bytes>> {
    let mut response = Response::builder()
        .status(StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
        .header(CONTENT_TYPE, answer.kind)
        .header(CONTENT_SECURITY_POLICY, POLICY)
        .header(X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(CACHE_CONTROL, "no-cache");
    if let Some(tag) = &answer.tag {
        response = response.header(ETAG, tag);
    }
    response.body(Full::from(answer.body.clone())).unwrap_or_default()
}
