//! Who reaches whom: asked of real traffic, and of policy.
//!
//! A [`Question`] is one service from one workload to one address of another. [`Crew::ask`] finds
//! out what happens, [`Oracle::expect`] what policy says should; where they [differ](agrees), one
//! of the two is wrong.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use firedoor_classifier::build::{self, Ends};
use firedoor_classifier::extract::extract;
use firedoor_classifier::policy::PolicyError;
use firedoor_classifier::snapshot::{self, Kind, Services, Snapshot, Workload};
use firedoor_classifier::verdict::{Cause, DropReason};
use firedoor_classifier::wire::tcp::TcpFlags;
use firedoor_classifier::{MacAddr, Nanos, Pipeline, Policy};
use serde::Serialize;

use crate::error::{LabError, building};
use crate::guest::{Guest, GuestConfig};
use crate::lab::Lab;
use crate::plan::Host;
use crate::probe::{Answer, Outcome, Responder, Service, probe};

/// Services that hardly any policy allows, asked for as well.
const STRANGERS: [Service; 2] = [Service::Tcp(22), Service::Udp(53)];

/// A TCP or UDP port for rules that allow all of them.
const ANY_PORT: u16 = 4000;

/// One service from one workload to one address of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Question {
    /// The workload that asks.
    pub from: String,
    /// The workload that is asked.
    pub to: String,
    /// At which of its addresses.
    pub address: IpAddr,
    /// For what.
    pub service: Service,
}

/// Every service, between every two of `hosts` and in both directions, over each address family
/// that both have on a shared network.
pub fn questions(hosts: &[Host], services: &[Service]) -> Vec<Question> {
    let mut questions = Vec::new();
    for from in hosts {
        for to in hosts.iter().filter(|to| to.workload != from.workload) {
            for address in [false, true].into_iter().filter_map(|v6| from.address_of(to, v6)) {
                questions.extend(services.iter().map(|&service| Question {
                    from: from.workload.clone(),
                    to: to.workload.clone(),
                    address: address.addr(),
                    service,
                }));
            }
        }
    }
    questions
}

/// One of each service that the rules name, ping, and a few that nobody is likely to allow.
pub fn services(snapshot: &Snapshot) -> Vec<Service> {
    let mut services = vec![Service::Ping];
    services.extend(STRANGERS);
    for rule in &snapshot.rules {
        if let Services::Only(named) = &rule.services {
            services.extend(named.iter().filter_map(example));
        }
    }
    services.sort();
    services.dedup();
    services
}

/// A service that a probe can try and that this one covers.
fn example(service: &snapshot::Service) -> Option<Service> {
    match *service {
        snapshot::Service::Ports { protocol: 6, first, .. } => Some(Service::Tcp(first)),
        snapshot::Service::Ports { protocol: 17, first, .. } => Some(Service::Udp(first)),
        snapshot::Service::Protocol(6) => Some(Service::Tcp(ANY_PORT)),
        snapshot::Service::Protocol(17) => Some(Service::Udp(ANY_PORT)),
        _ => None,
    }
}

/// Someone at every workload of a lab, who asks and answers: threads in the containers' namespaces,
/// userspace guests behind the taps. They leave when dropped.
#[derive(Debug)]
pub struct Crew<'a> {
    lab: &'a Lab,
    guests: BTreeMap<String, Guest>,
    responders: Vec<Responder>,
}

impl<'a> Crew<'a> {
    /// Sends someone everywhere, to answer `services`.
    ///
    /// # Errors
    /// If a port or a tap is taken.
    pub fn start(lab: &'a Lab, services: &[Service]) -> Result<Self, LabError> {
        let mut crew = Self { lab, guests: BTreeMap::new(), responders: Vec::new() };
        for host in lab.hosts() {
            let what = format!("answer at {}", host.workload);
            match host.kind {
                Kind::Container => {
                    let netns = lab.netns(&host.workload)?;
                    let responder = building(what, Responder::start(&netns, services))?;
                    crew.responders.push(responder);
                }
                Kind::Vm => {
                    let config = GuestConfig {
                        mac: host.mac.unwrap_or_default(),
                        addresses: host.addresses.clone(),
                        gateways: host.gateways.clone(),
                        echo: services.to_vec(),
                        forward: Vec::new(),
                    };
                    let guest = Guest::start(lab.switch_netns()?, &host.ifname, config);
                    crew.guests.insert(host.workload.clone(), building(what, guest)?);
                }
                Kind::External => {}
            }
        }
        Ok(crew)
    }

    /// The guest of a vm workload.
    pub fn guest(&self, workload: &str) -> Option<&Guest> {
        self.guests.get(workload)
    }

    /// Asks all `questions` at once, waiting at most `timeout` for answers, which come in the
    /// questions' order. `progress` hears of each answer.
    ///
    /// # Errors
    /// If a question could not be asked.
    pub fn ask(
        &self,
        questions: &[Question],
        timeout: Duration,
        progress: &(dyn Fn() + Sync),
    ) -> io::Result<Vec<Answer>> {
        thread::scope(|scope| {
            let asking: Vec<_> = questions
                .iter()
                .map(|question| {
                    scope.spawn(move || {
                        let answer = self.ask_one(question, timeout);
                        progress();
                        answer
                    })
                })
                .collect();
            asking
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
                .collect()
        })
    }

    /// On a thread that the question may keep: it moves into the asker's namespace.
    fn ask_one(&self, question: &Question, timeout: Duration) -> io::Result<Answer> {
        let Question { from, address, service, .. } = question;
        let answer = match self.guests.get(from) {
            Some(guest) => guest.probe(*address, *service, timeout),
            None => {
                let netns = self.lab.netns(from).map_err(io::Error::other)?;
                netns.enter().map_err(io::Error::other)?;
                probe(*address, *service, timeout)
            }
        };
        answer.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{from} cannot ask {address} for {service}: {error}"),
            )
        })
    }
}

/// What policy promises for one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Expectation {
    /// What the asker should hear.
    pub outcome: Outcome,
    /// Rule that decides; `default` or `switch` where none does.
    pub rule: String,
    /// Why it is refused, if it is.
    #[serde(skip)]
    pub reason: Option<DropReason>,
}

/// A policy, to be asked instead of a switch: the classifier judges the frame that each question
/// would begin with, on its own, without anything learned or remembered.
pub struct Oracle {
    policy: Arc<Policy>,
}

impl Oracle {
    /// # Errors
    /// If the snapshot cannot be enforced.
    pub fn new(snapshot: Snapshot) -> Result<Self, PolicyError> {
        Ok(Self { policy: Arc::new(Policy::build(snapshot)?) })
    }

    /// What should come of `question`; `None` if the snapshot does not know its ends.
    pub fn expect(&self, question: &Question) -> Option<Expectation> {
        let snapshot = self.policy.snapshot();
        let workload = |name: &str| snapshot.workloads.iter().find(|w| w.name == name);
        let (from, to) = (workload(&question.from)?, workload(&question.to)?);
        let same_family = |a: &&IpAddr| a.is_ipv6() == question.address.is_ipv6();
        let frame = first_frame(from, to, *from.addresses.iter().find(same_family)?, question);
        let verdict = match extract(&frame, from.port) {
            Ok(headers) => {
                let mut pipeline = Pipeline::new(Arc::clone(&self.policy));
                pipeline.judge(&headers, frame.len(), Nanos::default())
            }
            Err(reason) => firedoor_classifier::Verdict::drop(reason),
        };
        let reason = verdict.drop_reason();
        let outcome = match reason {
            None => Outcome::Reachable,
            Some(DropReason::Rejected) => Outcome::Refused,
            Some(_) => Outcome::Silent,
        };
        let rule = match verdict.cause {
            Cause::Rule(id) => snapshot.rules.get(id.0 as usize)?.name.clone(),
            Cause::Default => "default".to_owned(),
            Cause::Switch => "switch".to_owned(),
        };
        Some(Expectation { outcome, rule, reason })
    }
}

/// What the asker would send first.
fn first_frame(from: &Workload, to: &Workload, src: IpAddr, question: &Question) -> Vec<u8> {
    const EPHEMERAL_PORT: u16 = 40_000;
    let mac = |workload: &Workload| workload.mac.unwrap_or(MacAddr([2, 0, 0, 0, 0, 1]));
    let ends = Ends { eth_src: mac(from), eth_dst: mac(to), src, dst: question.address };
    match question.service {
        Service::Ping => build::echo_request(ends, 1, 1),
        Service::Tcp(port) => build::tcp(ends, EPHEMERAL_PORT, port, TcpFlags::SYN),
        Service::Udp(port) => build::udp(ends, EPHEMERAL_PORT, port, b"firedoor"),
    }
}

/// Whether an answer is what was expected. A guest's stack does not tell its programs of ICMP
/// errors, so to a guest (`asker_is_guest`) a rejection may look like silence.
pub fn agrees(expected: Outcome, answer: Outcome, asker_is_guest: bool) -> bool {
    expected == answer
        || asker_is_guest && expected == Outcome::Refused && answer == Outcome::Silent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_is_not_silence_except_to_a_guest() {
        assert!(!agrees(Outcome::Refused, Outcome::Silent, false));
        assert!(agrees(Outcome::Refused, Outcome::Silent, true));
        assert!(!agrees(Outcome::Silent, Outcome::Refused, true));
        assert!(!agrees(Outcome::Refused, Outcome::Reachable, true));
    }
}
