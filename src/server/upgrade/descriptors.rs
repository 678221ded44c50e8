//! Sockets given from one process to the other.
//!
//! Descriptors travel beside the first bytes of a frame. The system closes those that come where
//! nobody expects any.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::frames::{self, HEADER, Kind, Malformed};
use super::hello::{HandshakeError, PATIENCE, receive_body};
use crate::handover::fields::{self, Writer};

/// Sockets in one frame. The system's limit is 253.
const AT_ONCE: usize = 250;

/// Sockets altogether.
const MOST: usize = 4096;

const SPACE: usize = rustix::cmsg_space!(ScmRights(253));

/// Gives sockets to the other process. This one keeps them as well.
///
/// # Errors
/// When the connection is broken, or a socket cannot be given.
pub async fn send_sockets(
    stream: &mut UnixStream,
    sockets: &[BorrowedFd<'_>],
) -> Result<(), HandshakeError> {
    let mut parts = sockets.chunks(AT_ONCE).peekable();
    loop {
        let part = parts.next().unwrap_or_default();
        let mut body = Writer::new();
        let has_more = parts.peek().is_some();
        body.u64(1, part.len() as u64).u64(2, has_more.into());
        let header = frames::header(Kind::Sockets, body.as_bytes()).map_err(io::Error::other)?;
        let frame = [&header, body.as_bytes()].concat();
        let sent = timeout(PATIENCE, send(stream, &frame, part)).await;
        sent.map_err(|_| HandshakeError::TimedOut)??;
        if !has_more {
            return Ok(());
        }
    }
}

async fn send(
    stream: &mut UnixStream,
    frame: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); SPACE];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                beside.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            let bytes = [IoSlice::new(frame)];
            Ok(sendmsg(&*stream, &bytes, &mut beside, SendFlags::NOSIGNAL)?)
        })
        .await?;
    stream.write_all(frame.get(sent..).unwrap_or_default()).await
}

/// Receives the sockets that the other process gives.
///
/// # Errors
/// When the connection is broken, or the sockets are not those that were announced.
pub async fn receive_sockets(stream: &mut UnixStream) -> Result<Vec<OwnedFd>, HandshakeError> {
    let mut sockets = Vec::new();
    loop {
        let part = timeout(PATIENCE, receive_part(stream)).await;
        let Some((received, has_more)) = part.map_err(|_| HandshakeError::TimedOut)?? else {
            continue;
        };
        sockets.extend(received);
        if sockets.len() > MOST {
            return Err(Malformed("too many sockets").into());
        }
        if !has_more {
            return Ok(sockets);
        }
    }
}

/// Some sockets, and whether more will follow. `None`: the frame is ignored.
async fn receive_part(
    stream: &mut UnixStream,
) -> Result<Option<(Vec<OwnedFd>, bool)>, HandshakeError> {
    let (header, descriptors) = receive_header(stream).await?;
    let body = match receive_body(stream, header).await? {
        (Some(Kind::Sockets), body) => body,
        (Some(_), _) => return Err(Malformed("no sockets").into()),
        (None, _) => return Ok(None),
    };
    let (count, has_more) = decode(&body)?;
    if count != descriptors.len() as u64 {
        return Err(Malformed("not as many sockets as it says").into());
    }
    Ok(Some((descriptors, has_more)))
}

/// The number of sockets beside a frame, and whether more will follow.
///
/// # Errors
/// When a field is missing or impossible.
pub fn decode(body: &[u8]) -> Result<(u64, bool), Malformed> {
    const MALFORMED: Malformed = Malformed("a malformed number of sockets");
    let (mut count, mut has_more) = (None, None);
    for field in fields::read(body) {
        let field = field.map_err(|_| MALFORMED)?;
        match field.number {
            1 => count = Some(field.u64().ok_or(MALFORMED)?),
            2 => has_more = Some(field.u64().ok_or(MALFORMED)? != 0),
            _ => {}
        }
    }
    count.zip(has_more).ok_or(MALFORMED)
}

/// The header of a frame, and the descriptors beside it.
async fn receive_header(
    stream: &mut UnixStream,
) -> Result<([u8; HEADER], Vec<OwnedFd>), HandshakeError> {
    let mut header = [0; HEADER];
    let mut descriptors = Vec::new();
    let mut filled = 0;
    while let Some(rest) = header.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let (received, is_whole) = stream
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); SPACE];
                let mut beside = RecvAncillaryBuffer::new(&mut space);
                let bytes = &mut [IoSliceMut::new(rest)];
                let message = recvmsg(&*stream, bytes, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
                for part in beside.drain() {
                    if let RecvAncillaryMessage::ScmRights(received) = part {
                        descriptors.extend(received);
                    }
                }
                Ok((message.bytes, !message.flags.contains(ReturnFlags::CTRUNC)))
            })
            .await?;
        if !is_whole {
            // The others are closed: this process may have too many open files.
            return Err(io::Error::other("not all sockets could be received").into());
        }
        if received == 0 {
            return Err(HandshakeError::Closed);
        }
        filled += received;
    }
    Ok((header, descriptors))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;
    use crate::server::upgrade::hello::{Hello, receive_hello};

    /// Several frames have to carry them.
    const MANY: usize = 2 * AT_ONCE + 1;

    #[tokio::test]
    async fn sockets_arrive_and_work_in_their_order() {
        let (mut old, mut new) = UnixStream::pair().unwrap();
        let (first, last) = (listen(), listen());
        let addresses = [first.local_addr().unwrap(), last.local_addr().unwrap()];
        let mut sockets = vec![first.as_fd(); MANY - 1];
        sockets.push(last.as_fd());
        send_sockets(&mut old, &sockets).await.unwrap();
        send_sockets(&mut old, &[]).await.unwrap();
        drop((first, last));

        let mut received = receive_sockets(&mut new).await.unwrap();
        assert_eq!(received.len(), MANY);
        for socket in &received {
            assert!(fcntl_getfd(socket).unwrap().contains(FdFlags::CLOEXEC));
        }
        let last = TcpListener::from(received.pop().unwrap());
        let first = TcpListener::from(received.pop().unwrap());
        for (listener, address) in [first, last].iter().zip(addresses) {
            let client = TcpStream::connect(address).unwrap();
            let (_, from) = listener.accept().unwrap();
            assert_eq!(from, client.local_addr().unwrap());
        }
        assert!(receive_sockets(&mut new).await.unwrap().is_empty());
    }

    fn listen() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn frame(kind: Kind, body: &Writer) -> Vec<u8> {
        [&frames::header(kind, body.as_bytes()).unwrap(), body.as_bytes()].concat()
    }

    #[tokio::test]
    async fn sockets_that_were_not_announced_are_closed_and_missing_ones_an_error() {
        for announced in [0, 1, 3] {
            let (mut old, mut new) = UnixStream::pair().unwrap();
            let (mut reader, writer) = pipe().unwrap();
            let mut body = Writer::new();
            body.u64(1, announced).u64(2, 0);
            let descriptors = [writer.as_fd(), writer.as_fd()];
            send(&mut old, &frame(Kind::Sockets, &body), &descriptors).await.unwrap();
            drop(writer);
            let error = receive_sockets(&mut new).await.unwrap_err();
            let expected = "the other process sent not as many sockets as it says";
            assert_eq!(error.to_string(), expected);
            // The end comes when nobody has the other end any more.
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn descriptors_where_nobody_expects_them_are_closed() {
        let (mut old, mut new) = UnixStream::pair().unwrap();
        let (mut reader, writer) = pipe().unwrap();
        let hello = frame(Kind::Hello, &Hello::own().encode());
        send(&mut old, &hello, &[writer.as_fd()]).await.unwrap();
        // Beside a frame that is ignored.
        send(&mut old, &[0, 0, 0, 0, 200], &[writer.as_fd()]).await.unwrap();
        send_sockets(&mut old, &[]).await.unwrap();
        drop(writer);
        assert_eq!(receive_hello(&mut new).await.unwrap(), Hello::own());
        assert!(receive_sockets(&mut new).await.unwrap().is_empty());
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn an_impossible_frame_is_an_error() {
        let (mut old, mut new) = UnixStream::pair().unwrap();
        send(&mut old, &frame(Kind::Hello, &Hello::own().encode()), &[]).await.unwrap();
        let error = receive_sockets(&mut new).await.unwrap_err();
        assert_eq!(error.to_string(), "the other process sent no sockets");
        send(&mut old, &[0, 0, 0, 0, Kind::Sockets as u8], &[]).await.unwrap();
        let error = receive_sockets(&mut new).await.unwrap_err();
        assert_eq!(error.to_string(), "the other process sent a malformed number of sockets");
        drop(old);
        let error = receive_sockets(&mut new).await.unwrap_err();
        assert!(matches!(error, HandshakeError::Closed), "{error}");
    }
}
