//! What passed on a wire: tcpdump in a namespace, its packets in memory, and what the tests ask of them.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::kubelet::Children;
use crate::node::{Node, PodRef};

/// Bytes of the pcap file header, and of the header before each packet (pcap-savefile(5)).
const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
/// How long tcpdump may take to begin.
const BEGIN: Duration = Duration::from_secs(10);
/// How long it may take to read what has already passed, and how often that is looked at.
const DRAIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(1);

/// A running capture. Dropping it ends it.
pub struct Capture {
    child: Child,
    packets: Option<JoinHandle<Vec<u8>>>,
}

/// What a capture saw.
#[derive(Clone, Debug, Default)]
pub struct Packets {
    /// Each from its link-layer header on.
    pub packets: Vec<Vec<u8>>,
}

impl Node {
    /// Captures what passes on the node's bridge and matches a pcap filter, from the moment this returns.
    pub fn capture(&self, filter: &str) -> Result<Capture> {
        Capture::start(self.pid(), self.pid(), "br0", filter)
    }
}

impl PodRef<'_> {
    /// Captures what passes on an interface of the pod (`eth0`, `lo`), from the moment this returns.
    pub fn capture(&self, interface: &str, filter: &str) -> Result<Capture> {
        Capture::start(self.node_pid(), self.sandbox()?, interface, filter)
    }
}

impl Capture {
    /// In the node's process namespace, so that it cannot outlive the node.
    fn start(node: i32, namespace: i32, interface: &str, filter: &str) -> Result<Self> {
        let mut child = Command::new("nsenter")
            .args([&format!("--target={node}"), "--pid", &format!("--net=/proc/{namespace}/ns/net"), "--"])
            .args([
                "tcpdump",
                "--immediate-mode",
                "-U",
                "-n",
                "-s",
                "0",
                "-Z",
                "root",
                "-w",
                "-",
                "-i",
                interface,
            ])
            .arg(filter)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting tcpdump")?;
        let mut stdout = child.stdout.take().context("tcpdump has no standard output")?;
        let stderr = child.stderr.take().context("tcpdump has no standard error")?;
        let packets = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What came before an error is what there is.
            let _ = stdout.read_to_end(&mut bytes);
            bytes
        });
        let (said, says) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Nobody listens after the beginning.
                let _ = said.send(line);
            }
        });
        let capture = Self { child, packets: Some(packets) };
        let mut heard = String::new();
        while let Ok(line) = says.recv_timeout(BEGIN) {
            if line.contains("listening on") {
                return Ok(capture);
            }
            heard.push_str(&line);
        }
        bail!("tcpdump did not begin: {heard}")
    }

    /// Ends the capture and returns what it saw: every packet that passed before this was called.
    pub fn stop(mut self) -> Result<Packets> {
        self.drained()?;
        self.end();
        let bytes = self.packets.take().and_then(|thread| thread.join().ok());
        parse(&bytes.context("the capture's reader ended early")?)
    }

    /// Waits until tcpdump has read all that the kernel holds for it: it sleeps only then (in immediate mode each packet
    /// wakes it). On a busy machine whoever made the packets may be here before tcpdump had a turn.
    fn drained(&self) -> Result<()> {
        let nsenter = self.child.id();
        let children = fs::read_to_string(format!("/proc/{nsenter}/task/{nsenter}/children"))?;
        let tcpdump = children.split_whitespace().next().context("tcpdump has ended early")?;
        let until = Instant::now() + DRAIN;
        while Instant::now() < until {
            let stat = fs::read_to_string(format!("/proc/{tcpdump}/stat"))?;
            // proc_pid_stat(5): the state follows the name, which is in parentheses.
            if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')) {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        bail!("tcpdump is still reading after {DRAIN:?}")
    }

    fn end(&mut self) {
        // tcpdump writes each packet as it comes (-U): there is nothing to flush.
        drop(Children(Some(self.child.id())));
        let _ = self.child.wait();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

fn parse(bytes: &[u8]) -> Result<Packets> {
    let little = match bytes.get(..4) {
        Some([0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]) => true,
        Some([0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d]) => false,
        _ => bail!("this is not a pcap file"),
    };
    let mut packets = Vec::new();
    let mut rest = bytes.get(FILE_HEADER..).unwrap_or_default();
    while let Some(length) = rest.get(8..12).and_then(|length| <[u8; 4]>::try_from(length).ok()) {
        let length = if little { u32::from_le_bytes(length) } else { u32::from_be_bytes(length) };
        let end = PACKET_HEADER.saturating_add(length as usize);
        // The last packet may be cut off where tcpdump was ended.
        let Some(packet) = rest.get(PACKET_HEADER..end) else { break };
        packets.push(packet.to_vec());
        rest = rest.get(end..).unwrap_or_default();
    }
    Ok(Packets { packets })
}

impl Packets {
    /// Whether these bytes passed within one packet.
    pub fn contain(&self, bytes: &[u8]) -> bool {
        !bytes.is_empty()
            && self.packets.iter().any(|packet| packet.windows(bytes.len()).any(|part| part == bytes))
    }

    /// TCP payloads that begin with a TLS 1.2 or 1.3 application-data record (RFC 8446 section 5.1).
    pub fn tls_application_data(&self) -> usize {
        self.tls_records(23)
    }

    /// TCP payloads that begin with a TLS handshake record, as a ClientHello does.
    pub fn tls_handshakes(&self) -> usize {
        self.tls_records(22)
    }

    fn tls_records(&self, content_type: u8) -> usize {
        let payloads = self.packets.iter().filter_map(|packet| tcp_payload(packet));
        payloads.filter(|payload| matches!(payload, [kind, 3, 1..=3, ..] if *kind == content_type)).count()
    }
}

/// The payload of an Ethernet frame with TCP over IPv4 or IPv6 without extension headers.
fn tcp_payload(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(14..)?;
    let (segment, length) = match frame.get(12..14)? {
        [0x08, 0x00] if packet.get(9) == Some(&6) => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            (packet.get(header..)?, total.checked_sub(header)?)
        }
        [0x86, 0xdd] if packet.get(6) == Some(&6) => {
            let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            (packet.get(40..)?, length)
        }
        _ => return None,
    };
    // Segmentation offload may leave a length of zero for what is longer than 64 KiB.
    let segment = if length == 0 { segment } else { segment.get(..length)? };
    segment.get(usize::from(segment.get(12)? >> 4) * 4..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_and_a_cut_off_one_is_dropped() {
        let seen = parse(&pcap(&[b"one", b"two"])[..FILE_HEADER + 2 * PACKET_HEADER + 5]).unwrap();
        assert_eq!(seen.packets, [b"one".to_vec()]);
        assert!(seen.contain(b"ne"));
        assert!(!seen.contain(b"two"));
        assert!(!seen.contain(b""));
    }

    #[test]
    fn what_is_not_a_capture_is_refused() {
        assert!(parse(b"tcpdump: no").is_err());
    }

    #[test]
    fn tls_records_are_told_from_plaintext() {
        let seen = Packets {
            packets: vec![
                frame(&[23, 3, 3, 0, 1, 9]),
                frame(&[22, 3, 1, 0, 1, 1]),
                frame(b"GET /"),
                frame(b""),
            ],
        };
        assert_eq!((seen.tls_application_data(), seen.tls_handshakes()), (1, 1));
    }

    /// Ethernet padding after the IP packet is not payload.
    #[test]
    fn padding_is_not_payload() {
        let mut padded = frame(b"");
        padded.extend([23, 3, 3, 0, 0, 0]);
        assert_eq!(tcp_payload(&padded), Some(&[][..]));
    }

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        let total = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
        frame.extend([0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 80, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    fn pcap(packets: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0xd4, 0xc3, 0xb2, 0xa1];
        bytes.resize(FILE_HEADER, 0);
        for packet in packets {
            let length = u32::try_from(packet.len()).unwrap().to_le_bytes();
            bytes.extend([0; 8]);
            bytes.extend(length);
            bytes.extend(length);
            bytes.extend(*packet);
        }
        bytes
    }
}
