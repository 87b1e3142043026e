// SPDX-License-Identifier: Apache-2.0
//
// Counts the frames of a load and drops them; other frames pass. One program counts before the
// kernel makes an skb, the other where the stack takes the skb over.
//
// Compiled by `cargo xtask bpf`; the object is committed beside this file.
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "load.h"

// What arrived, on one processor.
struct tally {
	__u64 frames;
	__u64 bytes;
	__u64 highest;
	// Frames whose sequence number was not above the highest so far.
	__u64 reordered;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} tallies SEC(".maps");

static __always_inline void add(__u32 length, __u64 sequence)
{
	__u32 zero = 0;
	struct tally *tally = bpf_map_lookup_elem(&tallies, &zero);
	if (!tally)
		return;
	tally->frames += 1;
	tally->bytes += length;
	if (sequence > tally->highest)
		tally->highest = sequence;
	else
		tally->reordered += 1;
}

SEC("xdp")
int count_frames(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct headers *frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > end || frame->mark.magic != MAGIC)
		return XDP_PASS;
	add(end - (void *)frame, bpf_be64_to_cpu(frame->mark.sequence));
	return XDP_DROP;
}

SEC("classifier")
int count_packets(struct __sk_buff *skb)
{
	// The headers need not lie in the skb's linear part.
	struct mark mark;
	if (bpf_skb_load_bytes(skb, __builtin_offsetof(struct headers, mark), &mark, sizeof(mark)) ||
	    mark.magic != MAGIC)
		return TC_ACT_UNSPEC;
	add(skb->len, bpf_be64_to_cpu(mark.sequence));
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
