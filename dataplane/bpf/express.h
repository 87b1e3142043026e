// SPDX-License-Identifier: Apache-2.0
//
// What the express lane's programs share: the layouts of their maps, how a frame is taken apart, how
// its verdict is found, and how it is counted. One program sees packets at tc, the other one frames in
// XDP; both ask the same table.
//
// Layouts are shared with dataplane/src/sys/express.rs, and with the data plane's next version through
// pinned maps: whoever changes one raises LAYOUT there.
#pragma once
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Longest headers that can hit: Ethernet, IPv6, TCP without options.
#define HEADERS (sizeof(struct ethhdr) + sizeof(struct ipv6hdr) + sizeof(struct tcphdr))

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_URG 0x20

// Datagrams of a flow that are on the long way together, while it is held, at most: if there were
// always some, it would be held for ever. What comes beyond is dropped until these have left, or for
// so many units of 2^20 ns, should one of them be lost.
#define MOST_HELD 128
#define DRAIN 16

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))

// What is the same in every frame of one direction of a conversation. The ingress interface is part
// of it, so nobody can use what was judged for another.
struct flow_key {
	__u32 ingress;		// interface index
	__u8 src[16];		// IPv4 as ::ffff:a.b.c.d
	__u8 dst[16];
	__be16 src_port;
	__be16 dst_port;
	__u32 protocol;
};

// How a frame leaves.
enum egress_kind {
	EGRESS_TRANSMIT,	// through the device
	EGRESS_PEER,		// at the device's peer in another namespace, without passing its queue
};

// A verdict and what came of it. The first part is written by the data plane and only read here.
struct flow {
	struct flow_key key;
	__u8 eth_dst[6];
	__u8 eth_src[6];
	__u64 epoch;
	__u32 egress;		// interface index
	__u16 kind;
	__u16 max_frame;	// longest frame that the egress takes, Ethernet header included
	__u32 rule;
	__u16 mark;		// added to the tag of what is punted, so that it is counted
	__u8 is_reply;		// of the connection's two flows, the second: for who takes it over
	__u8 tcp_flags;		// of the connection's first frame: likewise
	__u32 passed;		// of the punted, how many have left the switch

	__u32 punted;		// frames sent the long way, as they count after segmentation
	__u32 seq;		// TCP: after the last byte sent
	__u32 ack;		// TCP: after the last byte acknowledged
	__u32 window;		// TCP: as in the header, unscaled
	__u32 draining;		// since when what is too much for the long way is dropped; 0 if it is not
	__u64 packets;		// redirected, as they would count after segmentation
	__u64 bytes;		// likewise
	__u64 drained;		// frames dropped so
};

// Written by the data plane, but for the last.
struct control {
	__u64 epoch;		// of the policy in force
	__u64 open_until;	// CLOCK_MONOTONIC, in nanoseconds; later the door is shut
	__u32 punt;		// interface index
	__u32 devices;		// entries of express_devices
	__u64 shut;		// frames dropped because the door was; counted here
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} express_control SEC(".maps");

// The tag of each port, by interface index.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} express_ports SEC(".maps");

// Where in express_flows a flow is. The loader sets the size.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, __u32);
} express_index SEC(".maps");

// The loader sets the size.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow);
} express_flows SEC(".maps");

// A frame's headers, as far as they were understood.
struct headers {
	struct flow_key key;
	__u8 eth_dst[6];
	__u8 eth_src[6];
	__u32 end;		// of the packet, in bytes from the frame's start
	__u32 transport;	// where TCP's or UDP's header begins
	__u32 payload;		// where TCP's or UDP's data begin
	__u32 seq;
	__u32 ack;
	__u32 window;
	__sum16 sum;		// TCP's or UDP's checksum
	__u8 special;		// moves its connection's state: for the switch to see
};

static __always_inline int same(const void *a, const void *b, int words)
{
	const __u32 *one = a, *two = b;
	__u32 difference = 0;
#pragma unroll
	for (int i = 0; i < words; i++)
		difference |= one[i] ^ two[i];
	return !difference;
}

// RFC 1071, over the header's twenty bytes.
static __always_inline int ipv4_checksum_is_right(const struct iphdr *ip)
{
	const __u16 *words = (const void *)ip;
	__u32 sum = 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

// The transport header at `l4`, behind which the packet ends at headers->end.
static __always_inline int parse_transport(struct headers *headers, const void *l4, __u32 at,
					   const void *end)
{
	headers->transport = at;
	if (headers->key.protocol == IPPROTO_TCP) {
		const struct tcphdr *tcp = l4;
		__u8 flags;

		if ((const void *)(tcp + 1) > end || tcp->doff < 5)
			return 0;
		flags = ((const __u8 *)l4)[13];
		headers->key.src_port = tcp->source;
		headers->key.dst_port = tcp->dest;
		headers->payload = at + tcp->doff * 4;
		headers->sum = tcp->check;
		headers->seq = bpf_ntohl(tcp->seq) + headers->end - headers->payload;
		headers->ack = bpf_ntohl(tcp->ack_seq);
		headers->window = bpf_ntohs(tcp->window);
		headers->special = (flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK | TCP_URG)) != TCP_ACK;
	} else {
		const struct udphdr *udp = l4;

		if ((const void *)(udp + 1) > end)
			return 0;
		if (bpf_ntohs(udp->len) != headers->end - at)
			return 0;
		headers->key.src_port = udp->source;
		headers->key.dst_port = udp->dest;
		headers->payload = at + sizeof(*udp);
		headers->sum = udp->check;
	}
	return headers->payload <= headers->end;
}

// Fills `headers`, if the frame is one whose verdict can be here at all. It is `len` bytes long, of
// which those from `data` to `end` can be read, and came in at the interface of index `ingress`.
static __always_inline int parse(const void *data, const void *end, __u32 len, __u32 ingress,
				 struct headers *headers)
{
	const struct ethhdr *eth = data;

	if ((const void *)(eth + 1) > end)
		return 0;
	__builtin_memcpy(headers->eth_dst, eth->h_dest, 6);
	__builtin_memcpy(headers->eth_src, eth->h_source, 6);
	headers->key.ingress = ingress;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = (const void *)(eth + 1);

		if ((const void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || !ip->ttl)
			return 0;
		// Any fragment: more to come, or an offset. Also the reserved bit.
		if (ip->frag_off & bpf_htons(0xbfff))
			return 0;
		if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
			return 0;
		if (!ipv4_checksum_is_right(ip))
			return 0;
		headers->key.protocol = ip->protocol;
		headers->key.src[10] = headers->key.src[11] = 0xff;
		headers->key.dst[10] = headers->key.dst[11] = 0xff;
		__builtin_memcpy(&headers->key.src[12], &ip->saddr, 4);
		__builtin_memcpy(&headers->key.dst[12], &ip->daddr, 4);
		headers->end = sizeof(*eth) + bpf_ntohs(ip->tot_len);
		if (headers->end > len)
			return 0;
		return parse_transport(headers, ip + 1, sizeof(*eth) + sizeof(*ip), end);
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = (const void *)(eth + 1);

		if ((const void *)(ip + 1) > end || ip->version != 6 || !ip->hop_limit)
			return 0;
		if (ip->nexthdr != IPPROTO_TCP && ip->nexthdr != IPPROTO_UDP)
			return 0;
		headers->key.protocol = ip->nexthdr;
		__builtin_memcpy(headers->key.src, &ip->saddr, 16);
		__builtin_memcpy(headers->key.dst, &ip->daddr, 16);
		headers->end = sizeof(*eth) + sizeof(*ip) + bpf_ntohs(ip->payload_len);
		if (headers->end > len)
			return 0;
		return parse_transport(headers, ip + 1, sizeof(*eth) + sizeof(*ip), end);
	}
	return 0;
}

// The flow's entry, if its verdict is of the policy in force and for these very addresses.
static __always_inline struct flow *find(const struct headers *headers, __u64 epoch)
{
	__u32 *index = bpf_map_lookup_elem(&express_index, &headers->key);
	struct flow *flow;

	if (!index)
		return NULL;
	flow = bpf_map_lookup_elem(&express_flows, index);
	if (!flow || READ_ONCE(flow->epoch) != epoch)
		return NULL;
	// The index may be of an entry that was replaced a moment ago: the entry itself says whose
	// it is.
	if (!same(&flow->key, &headers->key, sizeof(struct flow_key) / 4))
		return NULL;
	return same(flow->eth_dst, headers->eth_dst, 3) ? flow : NULL;
}

// Whether the flow's frames still go the long way: until the switch has sent on what was punted, later
// frames would arrive first by the other.
static __always_inline int is_held(const struct flow *flow)
{
	__u32 punted = READ_ONCE(flow->punted);

	return !punted || punted != READ_ONCE(flow->passed);
}

// Whether a held flow has too much on the long way for this frame to follow.
static __always_inline int is_excess(struct flow *flow, __u64 now)
{
	__u32 since = READ_ONCE(flow->draining), units = (__u32)(now >> 20) | 1;

	if (since && units - since < DRAIN)
		return 1;
	if (flow->key.protocol != IPPROTO_UDP || since ||
	    (__s32)(READ_ONCE(flow->punted) - READ_ONCE(flow->passed)) < MOST_HELD) {
		flow->draining = 0;
		return 0;
	}
	flow->draining = units;
	return 1;
}

// What becomes of a frame whose verdict is known.
enum way {
	SHORT_WAY,	// redirected by its verdict
	LONG_WAY,	// to the switch
	NO_WAY,		// dropped, and counted as such
};

// The way of a frame that counts as so many on the wire.
static __always_inline enum way way_of(struct flow *flow, const struct headers *headers,
				       __u32 frames, __u64 now)
{
	if (!is_held(flow))
		return headers->special ? LONG_WAY : SHORT_WAY;
	if (!is_excess(flow, now))
		return LONG_WAY;
	__sync_fetch_and_add(&flow->drained, frames);
	return NO_WAY;
}

// Whether the switch has not been heard of for too long: then nothing passes, and is counted.
static __always_inline int is_shut(struct control *control, __u64 now)
{
	if (now <= READ_ONCE(control->open_until))
		return 0;
	__sync_fetch_and_add(&control->shut, 1);
	return 1;
}

static __always_inline int is_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

static __always_inline void count(struct flow *flow, const struct headers *headers, __u32 frames)
{
	__u32 overhead = (frames - 1) * headers->payload;

	if (headers->key.protocol == IPPROTO_TCP) {
		int first = !READ_ONCE(flow->packets);

		if (first || is_after(headers->seq, flow->seq))
			flow->seq = headers->seq;
		if (first || !is_after(flow->ack, headers->ack)) {
			flow->ack = headers->ack;
			flow->window = headers->window;
		}
	}
	__sync_fetch_and_add(&flow->bytes, headers->end + overhead);
	__sync_fetch_and_add(&flow->packets, frames);
}
