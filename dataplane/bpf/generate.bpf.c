// SPDX-License-Identifier: Apache-2.0
//
// Makes one frame of a load and sends it out of the interface that it is run for. Run over and over
// by BPF_PROG_RUN with live frames: each run gets a page that holds the frame as it was first given,
// or as an earlier run left it, with the first frame's length. So whatever differs between two
// frames is written each time.
//
// A frame is Ethernet, IPv4 without options, UDP, and a payload that begins with a mark and the
// frame's number, by which count.bpf.c knows it.
//
// Compiled by `cargo xtask bpf`; the object is committed beside this file.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "load.h"

// Frames follow each other in this circle of lengths.
#define LENGTHS 12

// The load, set by the loader. Lengths are of whole frames, and each has the checksum of its IPv4
// header, in network byte order.
const volatile __u16 lengths[LENGTHS];
const volatile __u16 checksums[LENGTHS];
// The first frame's length.
const volatile __u16 longest;
// How many flows there are, and how many to go on from one frame's to the next one's, less than it.
const volatile __u32 flows = 1;
const volatile __u32 stride;
// Flow n goes from port `source_port + n % source_ports` to `destination_port + n / source_ports`.
const volatile __u32 source_ports = 1;
const volatile __u16 source_port;
const volatile __u16 destination_port;

// What the next frame is. The loader sets the first.
struct next {
	__u64 sequence;
	__u32 flow;
	__u32 length;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct next);
} next_frame SEC(".maps");

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct next *next = bpf_map_lookup_elem(&next_frame, &zero);
	if (!next || next->length >= LENGTHS)
		return XDP_ABORTED;
	__u16 length = lengths[next->length];
	__u16 checksum = checksums[next->length];

	if (length < longest && bpf_xdp_adjust_tail(ctx, length - longest))
		return XDP_ABORTED;
	struct headers *frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;

	frame->ip.tot_len = bpf_htons(length - sizeof(frame->ethernet));
	frame->ip.check = checksum;
	frame->udp.len = bpf_htons(length - sizeof(frame->ethernet) - sizeof(frame->ip));
	frame->udp.source = bpf_htons(source_port + next->flow % source_ports);
	frame->udp.dest = bpf_htons(destination_port + next->flow / source_ports);
	frame->mark.sequence = bpf_cpu_to_be64(next->sequence);

	next->sequence += 1;
	next->flow = next->flow + stride < flows ? next->flow + stride : next->flow + stride - flows;
	next->length = next->length + 1 < LENGTHS ? next->length + 1 : 0;
	return XDP_TX;
}

char LICENSE[] SEC("license") = "Apache-2.0";
