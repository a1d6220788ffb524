//! A receiver of POSTs that answers as the test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};

use crate::PATIENCE;

/// One request as it came.
#[derive(Debug, Clone, Default)]
pub struct Post {
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// What is answered: a status, more headers (each with its line end), a body.
#[derive(Debug, Clone)]
pub struct Reply(pub u16, pub &'static str, pub &'static str);

type Answer = Box<dyn FnMut(&Post) -> Option<Reply> + Send>;

/// Listens until it is dropped; every request is recorded before it is answered.
#[derive(Debug)]
pub struct PostReceiver {
    pub port: u16,
    posts: mpsc::Receiver<Post>,
}

impl Post {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

impl PostReceiver {
    /// `answer` says what each request gets; `None`: no answer at all, the connection is closed.
    pub fn start(answer: impl FnMut(&Post) -> Option<Reply> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (sender, posts) = mpsc::sync_channel(100_000);
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Box::new(answer)));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (sender, answer) = (sender.clone(), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &sender, &answer));
            }
        });
        Self { port, posts }
    }

    /// The next request.
    pub fn next(&self) -> Post {
        self.posts.recv_timeout(PATIENCE).expect("a POST")
    }
}

fn serve(stream: TcpStream, sender: &mpsc::SyncSender<Post>, answer: &Mutex<Answer>) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut post = Post::default();
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        line.split(' ').nth(1)?.clone_into(&mut post.path);
        loop {
            line.clear();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            post.headers.push((name.to_lowercase(), value.to_owned()));
        }
        post.body = vec![0; post.header("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut post.body).ok()?;
        let reply = answer.lock().expect("no answer panics")(&post);
        drop(sender.send(post));
        let Reply(status, headers, body) = reply?;
        let len = body.len();
        write!(writer, "HTTP/1.1 {status} X\r\ncontent-length: {len}\r\n{headers}\r\n{body}").ok()?;
    }
}
