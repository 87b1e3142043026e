// SPDX-License-Identifier: Apache-2.0
//
// Every frame goes to the AF_XDP socket of its receive queue. Where there is no socket the door is
// shut: the frame is dropped, it never reaches the host's stack.
//
// Compiled by `cargo xtask bpf`; the object is committed beside this file.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

// One slot per receive queue. The loader sets the size.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

SEC("xdp")
int redirect(struct xdp_md *ctx)
{
	// The low bits of the flags are the action when the lookup fails (Linux 5.3).
	return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
}

char LICENSE[] SEC("license") = "Apache-2.0";
