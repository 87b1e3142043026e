//! Asking the control role of a running switch.

use firedoor_api::control::{Reply, Request};
use firedoor_api::dataplane::PortStatus;
use firedoor_control::client::ControlClient;
use firedoor_control::rundir::RunDir;

use crate::args::SwitchArgs;
use crate::output::Output;

/// A connection to the control role of the switch that is meant.
pub(crate) fn connect(switch: &SwitchArgs) -> anyhow::Result<ControlClient> {
    let run_dir = RunDir::select(switch.switch.as_deref())?;
    Ok(ControlClient::to_control(&run_dir)?)
}

/// Asks one question.
pub(crate) fn ask(switch: &SwitchArgs, request: &Request) -> anyhow::Result<Reply> {
    Ok(connect(switch)?.ask(request)?)
}

/// Asks for a change, tells its notices, and returns its epoch and the ports as they are now.
pub(crate) fn change(
    switch: &SwitchArgs,
    request: &Request,
    out: &mut Output,
) -> anyhow::Result<(u64, Vec<PortStatus>)> {
    match ask(switch, request)? {
        Reply::Applied { epoch, notices, ports } => {
            notices.iter().for_each(|notice| out.warn(notice));
            Ok((epoch, ports))
        }
        _ => Err(unexpected()),
    }
}

/// For an answer of the wrong kind.
pub(crate) fn unexpected() -> anyhow::Error {
    anyhow::anyhow!(
        "control gave an answer that does not fit the question: restart the switch with this \
         version of firedoor"
    )
}
