//! The S3 service that tests and benchmarks run: s3s-fs over a directory, with strict signatures, on 127.0.0.1.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

/// The access key that the server knows.
pub const ACCESS_KEY: &str = "AKIDBUCKETDISKTEST";
/// Its secret.
pub const SECRET_KEY: &str = "not-so-secret-0123456789";

/// How far away the service is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// How much later than it could each request is answered.
    pub delay: Duration,
    /// Bytes a second that bodies, in both directions together, take at most; `None`: as fast as it gets.
    pub rate: Option<u64>,
}

/// Serves what is below a directory; 0 is any free port. `listens` is told the port. Does not return.
pub async fn serve(data: &Path, port: u16, pace: Pace, listens: impl FnOnce(u16)) {
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(data).expect("data directory"));
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = Arc::new(Paced {
        service: OneConditionalPut {
            service: builder.build(),
            lane: Mutex::new(()),
        },
        pace,
        free: Mutex::new(Instant::now()),
    });
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = tokio::net::TcpListener::bind(address).await.expect("port");
    listens(listener.local_addr().expect("address").port());
    loop {
        let (socket, _) = listener.accept().await.expect("connection");
        // without this every answer waits for the client's delayed acknowledgement
        socket.set_nodelay(true).expect("socket option");
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let respond = service_fn(move |request| {
                let service = Arc::clone(&service);
                async move { Ok::<_, Infallible>(service.respond(request).await) }
            });
            let server = Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(socket), respond).await;
        });
    }
}

/// A service at the end of a line of some length and width.
struct Paced {
    service: OneConditionalPut,
    pace: Pace,
    /// When the line has carried all that was put on it.
    free: Mutex<Instant>,
}

impl Paced {
    async fn respond(&self, request: hyper::Request<Incoming>) -> s3s::HttpResponse {
        sleep(self.pace.delay).await;
        self.carry(request.body().size_hint().lower()).await;
        let response = self.service.respond(request).await;
        self.carry(response.body().size_hint().lower()).await;
        response
    }

    async fn carry(&self, bytes: u64) {
        let Some(rate) = self.pace.rate else {
            return;
        };
        let until = {
            let mut free = self.free.lock().await;
            *free =
                (*free).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *free
        };
        sleep_until(until).await;
    }
}

/// s3s-fs looks and then writes; taking one conditional request at a time makes that the atomic step that S3 has.
struct OneConditionalPut {
    service: S3Service,
    lane: Mutex<()>,
}

impl OneConditionalPut {
    async fn respond(&self, request: hyper::Request<Incoming>) -> s3s::HttpResponse {
        let _lane = match request.headers().contains_key("if-none-match") {
            true => Some(self.lane.lock().await),
            false => None,
        };
        Service::call(&self.service, request)
            .await
            .expect("s3s answers errors as responses")
    }
}
