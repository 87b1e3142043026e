//! A config of any size, as text.

use std::fmt::Write;

/// How much is in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Rules.
    pub(crate) rules: usize,
    /// Groups of addresses, which rules name in turn.
    pub(crate) groups: usize,
    /// Workloads, besides the uplink.
    pub(crate) workloads: usize,
    /// Labels that workloads have, each one, and rules name in turn.
    pub(crate) apps: usize,
}

impl Scale {
    /// Rules after which the same come again.
    pub(crate) const PERIOD: usize = 60_000;

    /// The port that a rule is about.
    pub(crate) const fn port(rule: usize) -> u16 {
        1 + (rule % Self::PERIOD) as u16
    }

    /// The config's text.
    pub(crate) fn config(&self) -> String {
        let mut text = String::new();
        // A string takes everything.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut impl Write) -> std::fmt::Result {
        text.write_str(
            "[switch]\nname = \"scale\"\n\n[[workload]]\nname = \"uplink\"\nkind = \"external\"\n\
             ifname = \"eth1\"\nrouter = true\n",
        )?;
        for n in 0..self.workloads {
            let (app, high, low) = (n % self.apps, n >> 8, n & 255);
            writeln!(
                text,
                "\n[[workload]]\nname = \"w{n}\"\nkind = \"container\"\n\
                 labels = {{ app = \"a{app}\" }}\nip = \"10.{high}.{low}.1/8\""
            )?;
        }
        for n in 0..self.groups {
            let (high, low) = (64 + (n >> 8), n & 255);
            writeln!(
                text,
                "\n[[group]]\nname = \"g{n}\"\ncidr = [\"100.{high}.{low}.0/24\", \
                 \"2001:db8:{n:x}::/48\"]\nexcept = \"100.{high}.{low}.128/25\""
            )?;
        }
        for n in 0..self.rules {
            let (group, app, port) = (n % self.groups, n % self.apps, Self::port(n));
            writeln!(
                text,
                "\n[[rule]]\nname = \"r{n}\"\nfrom = {{ group = \"g{group}\" }}\n\
                 to = {{ app = \"a{app}\" }}\nservice = \"tcp/{port}\"\naction = \"allow\"\n\
                 owner = \"team-{app}\""
            )?;
        }
        Ok(())
    }
}
