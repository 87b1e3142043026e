// SPDX-License-Identifier: Apache-2.0
//
// Makes one frame of a load and sends it out of the interface that it is run for. Run over and over
// by BPF_PROG_RUN with live frames: each run gets a page that holds the frame as it was first given,
// or as an earlier frame's receivers left it, with the first frame's length. They may have written
// into it, as one that inserts a tag does. So all headers are written each time.
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

// Flows of one destination port, as a power of two, because a division is a tenth of a frame's cost.
#define SOURCE_BITS 15

// The load, set by the loader. Lengths are of whole frames, and each has the checksum of its IPv4
// header, in network byte order.
const volatile __u16 lengths[LENGTHS];
const volatile __u16 checksums[LENGTHS];
// The first frame's length.
const volatile __u16 longest;
// What all frames begin with, up to the mark's magic and a little further.
#define PATTERN 6
const volatile __u64 pattern[PATTERN];
// How many flows there are, and how many to go on from one frame's to the next one's, less than it.
const volatile __u32 flows = 1;
const volatile __u32 stride;
// Flow n goes from port `source_port + n % 2^SOURCE_BITS` to `destination_port + n / 2^SOURCE_BITS`.
const volatile __u16 source_port;
const volatile __u16 destination_port;

// Times are from `start` on, in 1/1024 ns, so that any rate comes out right.
#define TICKS(nanoseconds) ((nanoseconds) << 10)

// What the next frame is, and when it is due.
struct next {
	__u64 sequence;
	__u64 due;
	__u32 flow;
	__u32 length;
};

// How to send. Written before the runs and, for `stop`, during them.
struct orders {
	// When sending begins and when it is over, in nanoseconds of CLOCK_MONOTONIC.
	__u64 start;
	__u64 deadline;
	// From one frame to the next, in ticks; 0 for as fast as it goes.
	__u64 interval;
	// The sequence number to send no more from.
	__u64 end;
	__u64 stop;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct next);
} next_frame SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct orders);
} standing_orders SEC(".maps");

// How many frames go out between two looks at the clock, if they go as fast as they can.
#define UNTIMED 64

// Whether the next frame is to be sent now.
static __always_inline int is_due(struct orders *orders, struct next *next)
{
	if (orders->stop || next->sequence >= orders->end)
		return 0;
	if (!orders->interval && next->sequence % UNTIMED)
		return 1;
	__u64 now = bpf_ktime_get_ns();
	if (now >= orders->deadline) {
		orders->stop = 1;
		return 0;
	}
	if (!orders->interval)
		return 1;
	__u64 elapsed = TICKS(now - orders->start);
	if (elapsed < next->due)
		return 0;
	// Who is late catches up at twice the pace: see tools/bench/src/traffic/pacer.rs.
	__u64 on_time = next->due + orders->interval;
	__u64 soonest = elapsed + orders->interval / 2;
	next->due = on_time > soonest ? on_time : soonest;
	return 1;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct next *next = bpf_map_lookup_elem(&next_frame, &zero);
	struct orders *orders = bpf_map_lookup_elem(&standing_orders, &zero);
	if (!next || !orders)
		return XDP_ABORTED;
	if (!is_due(orders, next))
		return XDP_DROP;
	__u32 place = next->length;
	if (place >= LENGTHS)
		return XDP_ABORTED;
	__u16 length = lengths[place];
	__u16 checksum = checksums[place];

	if (length < longest && bpf_xdp_adjust_tail(ctx, length - longest))
		return XDP_ABORTED;
	struct headers *frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;

	_Static_assert(sizeof(pattern) >= __builtin_offsetof(struct headers, mark.sequence) &&
		       sizeof(pattern) <= sizeof(struct headers), "all but the sequence number");
	__u64 *words = (void *)frame;
#pragma unroll
	for (int i = 0; i < PATTERN; i++)
		words[i] = pattern[i];
	frame->ip.tot_len = bpf_htons(length - sizeof(frame->ethernet));
	frame->ip.check = checksum;
	frame->udp.len = bpf_htons(length - sizeof(frame->ethernet) - sizeof(frame->ip));
	frame->udp.source = bpf_htons(source_port + (next->flow & ((1u << SOURCE_BITS) - 1)));
	frame->udp.dest = bpf_htons(destination_port + (next->flow >> SOURCE_BITS));
	frame->mark.sequence = bpf_cpu_to_be64(next->sequence);

	next->sequence += 1;
	next->flow = next->flow + stride < flows ? next->flow + stride : next->flow + stride - flows;
	next->length = place + 1 < LENGTHS ? place + 1 : 0;
	return XDP_TX;
}

char LICENSE[] SEC("license") = "Apache-2.0";
