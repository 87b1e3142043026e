// SPDX-License-Identifier: Apache-2.0
//
// Drops every packet. It stands at the ingress of ports whose frames a program in XDP takes, where nothing comes
// by as long as that is there: when that goes with a process that was killed, nothing reaches the
// host's stack still.
//
// Compiled by `cargo xtask bpf`; the object is committed beside this file.
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

SEC("classifier")
int wall(struct __sk_buff *skb)
{
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
