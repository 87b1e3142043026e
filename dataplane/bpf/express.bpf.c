// SPDX-License-Identifier: Apache-2.0
//
// The express lane: on the ingress of a port, a frame of a conversation that the switch has judged is
// redirected by that verdict. Every other frame is a miss and goes to the switch; what is not known to
// be safe is a miss. Nothing ever reaches the host's stack.
//
// Two programs share the verdicts. `express` stands at tc: packets leave whole, as the workload's stack
// made them, with segmentation and checksums left to the receiver's device; misses go into the punt
// device under a tag that names their port. `express_xdp` stands in XDP on ports of the switch lane:
// frames leave before the kernel makes an skb; misses go to the AF_XDP socket of their queue.
//
// Compiled by `cargo xtask bpf`; the object is committed beside this file.
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>

#include "express.h"

// Frames on the wire that this one becomes.
static __always_inline __u32 frames_of(const struct __sk_buff *skb, const struct headers *headers)
{
	__u32 size = skb->gso_size;

	if (!size || headers->end <= headers->payload)
		return 1;
	return (headers->end - headers->payload + size - 1) / size;
}

// Likewise, if its headers are not understood: rather too many. Who hands over a packet need not have said.
static __always_inline __u32 most_frames_of(const struct __sk_buff *skb)
{
	const __u32 headers = sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct udphdr);
	__u32 size = skb->gso_size;

	if (skb->gso_segs || !size || skb->len <= headers)
		return skb->gso_segs ? skb->gso_segs : 1;
	return (skb->len - headers + size - 1) / size;
}

// What a port has between this program and its worker.
struct intake {
	__u64 punted;		// frames, as they count after segmentation
	__u64 refused;		// frames that were too much, likewise
	__u64 taken;		// of the punted, how many have arrived; written by the data plane
	__u64 room;		// for how many there is room; likewise
};

// By tag. No port has tag 0: there is what all ports have between the program at tc and the punt device's
// socket, where `refused` is not used.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct intake);
} express_intakes SEC(".maps");

static __always_inline __s64 on_the_way(const struct intake *intake)
{
	return READ_ONCE(intake->punted) - READ_ONCE(intake->taken);
}

// Whether a port that has room for so many frames may send these the long way. Then they count as on it, else
// as refused. One packet may become thousands: it is for its sender to say into what pieces it is cut.
static __always_inline int is_admitted(struct intake *intake, __u32 frames, __s64 room)
{
	if (on_the_way(intake) + frames > room) {
		__sync_fetch_and_add(&intake->refused, frames);
		return 0;
	}
	__sync_fetch_and_add(&intake->punted, frames);
	return 1;
}

// How many times what it leaves free of the punt device's queue a port may have of it: whoever is alone gets
// three quarters, and any number of ports get equal parts, beside which there is room for one that comes new.
#define SHARE 3

static __always_inline __s64 shared_room(const struct intake *all, const struct intake *intake, __u32 frames)
{
	__s64 most = SHARE * ((__s64)READ_ONCE(all->room) - on_the_way(all) - frames);
	__s64 room = READ_ONCE(intake->room);

	return most < room ? most : room;
}

// Receive queues of a port, as a power of two.
#define QUEUE_BITS 6

// The sockets of the switch lane, by the tag of their port and their queue. No port has tag 0: there is
// the socket that receives what is punted.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1024 << QUEUE_BITS);
	__type(key, __u32);
	__type(value, __u32);
} express_sockets SEC(".maps");

// Whether the switch lives and receives what is punted. Its end takes the socket out of the map, and with
// it went all that was on the long way: no flow needs to be held for that any more.
static __always_inline int is_received(void)
{
	__u32 punted = 0;

	return !!bpf_map_lookup_elem(&express_sockets, &punted);
}

// Sends the frame to the switch, under its port's tag. `flow` is what it belongs to, if known, and
// `frames` what it becomes.
static __always_inline int punt(struct __sk_buff *skb, const struct control *control,
				struct flow *flow, __u32 frames)
{
	__u32 ingress = skb->ifindex, zero = 0;
	__u32 *port = bpf_map_lookup_elem(&express_ports, &ingress);
	struct intake *intake, *all = bpf_map_lookup_elem(&express_intakes, &zero);
	int is_lone;
	__u16 tag;

	if (!port || !all)
		return TC_ACT_SHOT;
	intake = bpf_map_lookup_elem(&express_intakes, port);
	if (!intake)
		return TC_ACT_SHOT;
	is_lone = !on_the_way(intake);
	if (!is_admitted(intake, frames, shared_room(all, intake, frames)))
		return TC_ACT_SHOT;
	__sync_fetch_and_add(&all->punted, frames);
	// Ahead of ports that have much there, where the device has a queue. It overtakes nothing of its own port's.
	skb->priority = is_lone ? TC_PRIO_INTERACTIVE : TC_PRIO_BESTEFFORT;
	tag = *port;
	if (flow) {
		tag |= READ_ONCE(flow->mark);
		note_punted(flow, frames);
	}
	// The outermost tag is always this one; a tag of the workload's own stays within.
	if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), tag))
		return TC_ACT_SHOT;
	return bpf_redirect(control->punt, 0);
}

// Whether the frame, or each segment of it, fits the egress.
static __always_inline int fits(const struct __sk_buff *skb, const struct headers *headers,
				const struct flow *flow)
{
	__u32 size = skb->gso_size;

	return (size ? headers->payload + size : headers->end) <= flow->max_frame;
}

// Whether the frame may be a datagram that the egress cuts into fragments which overlap, and so may become another
// one where it is put together. No field of the context tells fragments (of old guests) from datagrams; their
// offsets count eight bytes. Who has the number of segments from its own stack cuts datagrams.
static __always_inline int may_overlap(const struct __sk_buff *skb, const struct headers *headers)
{
	return headers->protocol == IPPROTO_UDP && skb->gso_size % 8 && !skb->gso_segs;
}

// Where the checksum of the transport header is.
static __always_inline __u32 place_of_sum(const struct headers *headers)
{
	switch (headers->protocol) {
	case IPPROTO_TCP:
		return headers->transport + offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		return headers->transport + offsetof(struct udphdr, check);
	default:
		return headers->transport + offsetof(struct echo, sum);
	}
}

// Whether the frame leaves as it was judged. Who leaves a checksum to a device says where it is to be written,
// and that may be into a port, an address or the flags; at a device that knows no checksums, the kernel does so
// once this program has ended. No helper tells of it, but two act by it: one changes no checksum that is
// not complete, and one that would cut a frame within what is to be written, or before, does nothing. If that
// does cut this one, nobody takes the rest for a packet any more.
static __always_inline int stays_as_judged(struct __sk_buff *skb, const struct headers *headers)
{
	__u32 at = place_of_sum(headers);
	__sum16 before, after;

	if (bpf_skb_load_bytes(skb, at, &before, sizeof(before)) ||
	    bpf_l4_csum_replace(skb, at, 0, 1, sizeof(before)) ||
	    bpf_skb_load_bytes(skb, at, &after, sizeof(after)))
		return 0;
	if (before != after)
		return !bpf_skb_store_bytes(skb, at, &before, sizeof(before), 0);
	return !!bpf_skb_change_tail(skb, at + 1, 0);
}

// Headers may lie outside the linear part, where programs cannot read them.
static __always_inline void pull_headers(struct __sk_buff *skb)
{
	__u64 linear = skb->data_end - skb->data;

	if (linear < HEADERS && linear < skb->len)
		bpf_skb_pull_data(skb, skb->len < HEADERS ? skb->len : HEADERS);
}

// Whether the kernel tells a packet that is handed to a device's peer that it is for this host. Since Linux 6.16 it
// does, and asking for it costs a call for nothing. Set by the loader.
const volatile __u8 peer_is_told;

SEC("classifier")
int express(struct __sk_buff *skb)
{
	__u32 zero = 0, frames;
	struct control *control = bpf_map_lookup_elem(&express_control, &zero);
	void *data, *end;
	struct headers headers;
	struct place place;
	struct found found;
	struct flow *flow;
	enum way way;

	if (unlikely(!control || is_shut(control)))
		return TC_ACT_SHOT;
	pull_headers(skb);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (skb->vlan_present || !take_key(data, end, skb->ifindex, &headers))
		return punt(skb, control, NULL, most_frames_of(skb));
	place = place_of(&headers, control);
	reach(&place, &found);
	if (unlikely(!is_plain(data, end, skb->len, &headers)))
		return punt(skb, control, NULL, most_frames_of(skb));
	frames = frames_of(skb, &headers);
	if (unlikely(!find(&headers, control, &place, &found)))
		return punt(skb, control, NULL, frames);
	flow = found.flow;
	way = way_of(&found, &headers, frames);
	if (way != SHORT_WAY && !headers.special && !is_received())
		way = SHORT_WAY;
	if (unlikely(way == NO_WAY))
		return TC_ACT_SHOT;
	if (unlikely(way == LONG_WAY || !fits(skb, &headers, flow)))
		return punt(skb, control, flow, frames);
	// What stands behind the packet is padding at best.
	if (unlikely(skb->len > headers.end) && bpf_skb_change_tail(skb, headers.end, 0))
		return punt(skb, control, flow, frames);
	if (!(flow->facts & FACT_PEER)) {
		if (unlikely(may_overlap(skb, &headers)))
			return punt(skb, control, flow, frames);
		if (!stays_as_judged(skb, &headers))
			return punt(skb, control, NULL, 1);
		count(&found, &headers, frames);
		return bpf_redirect(flow->egress, 0);
	}
	count(&found, &headers, frames);
	// The frame's type was told by the MAC address of the port; the receiver's own is another.
	if (!peer_is_told)
		bpf_skb_change_type(skb, PACKET_HOST);
	return bpf_redirect_peer(flow->egress, 0);
}

// The interfaces that take frames which were redirected in XDP, by their own index.
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} express_devices SEC(".maps");

// Most bytes that are summed at once.
#define SUMMED 256
// Longest frame that is summed: what fits a page beside the kernel's bookkeeping. No offset has other
// bits than these, which the verifier is to know.
#define LONGEST 4096
#define REACH (2 * LONGEST - 1)

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// A workload with checksum offload leaves the pseudo-header's sum in the checksum's place, and a note
// in the skb that XDP does not see: classifier/src/checksum.rs says why the field alone is enough.
static __always_inline int is_partial(const struct headers *headers)
{
	__u64 sum = bpf_htons(headers->protocol);

	// The protocol is in the sum, so it is never zero; UDP's "none" is.
	if (!headers->sum)
		return 0;
	sum += bpf_htons(headers->end - headers->transport);
	sum += (__u64)headers->key.src + headers->key.dst;
	if (is_ipv6(&headers->key)) {
#pragma unroll
		for (int i = 0; i < 6; i++)
			sum += headers->far.halves[i];
	}
	return headers->sum == fold(sum);
}

// Adds `len` bytes at `at`, fewer than SUMMED, to a sum. `len` may be odd.
static __always_inline int add_rest(struct xdp_md *ctx, __u32 at, __u64 len, __s64 *sum)
{
	__u64 rest[SUMMED / 8 + 1] = {};

	// The compiler knows it and would leave it out; the verifier does not.
	asm volatile("%0 &= %1" : "+r"(len) : "i"(SUMMED - 1));
	if (!len)
		return 1;
	if (bpf_xdp_load_bytes(ctx, at, rest, len))
		return 0;
	*sum = bpf_csum_diff(NULL, 0, (void *)rest, (len + 3) & ~3ULL, *sum);
	return 1;
}

// Completes a partial checksum. The field is in the sum as it is: it is the pseudo-header's. Not inlined:
// all the rest fits the stack of a program beside it only so.
static __noinline int complete(struct xdp_md *ctx, const struct headers *headers)
{
	__u32 at = headers->transport, left = headers->end - at, field;
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__s64 sum = 0;
	__u16 *place;

	for (int i = 0; i < LONGEST / SUMMED && left >= SUMMED; i++) {
		__be32 *from = data + (at & REACH);

		if ((void *)from + SUMMED > end)
			return 0;
		sum = bpf_csum_diff(NULL, 0, from, SUMMED, sum);
		at += SUMMED;
		left -= SUMMED;
	}
	if (left >= SUMMED || !add_rest(ctx, at, left, &sum))
		return 0;
	field = headers->protocol == IPPROTO_TCP ? offsetof(struct tcphdr, check)
						     : offsetof(struct udphdr, check);
	place = data + ((headers->transport + field) & REACH);
	if ((void *)(place + 1) > end)
		return 0;
	*place = ~fold((__u32)sum);
	// UDP's zero would mean that there is none (RFC 768).
	if (!*place && headers->protocol == IPPROTO_UDP)
		*place = 0xffff;
	return 1;
}

// Sends the frame to the switch, with its flow's mark in front, or 0.
static __always_inline int hand_over(struct xdp_md *ctx, struct flow *flow)
{
	__u32 ingress = ctx->ingress_ifindex, queue = ctx->rx_queue_index, mark = 0, *front;
	__u32 *port = bpf_map_lookup_elem(&express_ports, &ingress);
	struct intake *intake;

	if (!port || queue >> QUEUE_BITS)
		return XDP_DROP;
	intake = bpf_map_lookup_elem(&express_intakes, port);
	if (!intake || !is_admitted(intake, 1, READ_ONCE(intake->room)))
		return XDP_DROP;
	if (flow) {
		mark = READ_ONCE(flow->mark);
		note_punted(flow, 1);
	}
	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(mark)))
		return XDP_DROP;
	front = (void *)(long)ctx->data;
	if ((void *)(front + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	*front = mark;
	// The low bits of the flags are the action where there is no socket (Linux 5.3).
	return bpf_redirect_map(&express_sockets, *port << QUEUE_BITS | queue, XDP_DROP);
}

SEC("xdp")
int express_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 zero = 0, len = end - data;
	struct control *control = bpf_map_lookup_elem(&express_control, &zero);
	struct headers headers;
	struct place place;
	struct found found;
	struct flow *flow;
	enum way way;

	if (unlikely(!control || is_shut(control)))
		return XDP_DROP;
	if (unlikely(!READ_ONCE(control->devices) || !take_key(data, end, ctx->ingress_ifindex, &headers)))
		return hand_over(ctx, NULL);
	place = place_of(&headers, control);
	reach(&place, &found);
	if (unlikely(!is_plain(data, end, len, &headers) || !find(&headers, control, &place, &found)))
		return hand_over(ctx, NULL);
	flow = found.flow;
	way = way_of(&found, &headers, 1);
	if (unlikely(way == NO_WAY))
		return XDP_DROP;
	if (unlikely(way == LONG_WAY || headers.end > flow->max_frame ||
	    bpf_redirect_map(&express_devices, flow->egress, XDP_ABORTED) != XDP_REDIRECT))
		return hand_over(ctx, flow);
	if (unlikely(is_partial(&headers) && !complete(ctx, &headers)))
		return hand_over(ctx, flow);
	// What stands behind the packet is padding at best.
	if (unlikely(len > headers.end) && bpf_xdp_adjust_tail(ctx, (int)headers.end - (int)len))
		return hand_over(ctx, flow);
	count(&found, &headers, 1);
	return XDP_REDIRECT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
