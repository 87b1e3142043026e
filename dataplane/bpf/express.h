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
#define TCP_PSH 0x08
#define TCP_ACK 0x10
#define TCP_URG 0x20

// Datagrams of a flow that are on the long way together, while it is held, at most: if there were
// always some, it would be held for ever. What comes beyond is dropped until these have left, or for
// so many units of 2^20 ns, should one of them be lost.
#define MOST_HELD 128
#define DRAIN 16

// Types of ICMP's and ICMPv6's echo messages (RFC 792, RFC 4443), each with code 0.
#define ICMP_REQUEST 8
#define ICMP_REPLY 0
#define ICMPV6_REQUEST 128
#define ICMPV6_REPLY 129

// What hardly any frame is: so the way of the others lies close together.
#define unlikely(x) __builtin_expect(!!(x), 0)
#define likely(x) __builtin_expect(!!(x), 1)
#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))

// What is the same in every frame of one direction of a conversation, and how it travels between Ethernet
// addresses: what a frame must have in common with a verdict. The ingress interface is part of it, so
// nobody can use what was judged for another. Of IPv6 addresses it has the last word, and `struct far` the rest.
union flow_key {
	struct {
		__be32 src;
		__be32 dst;
		__be16 src_port;	// an echo's identifier
		__be16 dst_port;	// an echo's type and code
		__u32 ingress;		// interface index
		__u8 eth_dst[6];
		__u8 eth_src[6];
		__u32 protocol;		// and KEY_IPV6
	};
	__u64 words[4];			// it is taken from the frame, hashed and compared by words
};

#define KEY_IPV6 0x100

// What precedes the last words of IPv6's two addresses, source first.
union far {
	__u32 halves[6];
	__u64 words[3];
};

// Pairs of 32-bit words that are hashed: of the key last words of addresses, ports and interface; and of IPv6
// the rest.
#define HASHED_NEAR 2
#define HASHED_FAR 3

// At the device's peer in another namespace, without passing its queue; else it leaves through it.
#define FACT_PEER 1
// The connection's second flow: for who takes it over.
#define FACT_REPLY 2
// TCP: its last byte was sent, and a FIN. Written here.
#define FACT_ENDED 4
// TCP: the connection's SYN has passed, and its SYN-ACK has not. Taken back here, or by the data plane.
#define FACT_ASKED 8
// Where the processor stands that counts without locks, one more than its number, or 0.
#define FACT_COUNTER 16

// A verdict and what came of it, in two cache lines that lie apart. In one is what each frame needs.
struct flow {
	// Written by the data plane, and only read here.
	union flow_key key;
	__u32 epoch;		// its lower half; 0 if there is no verdict
	__u32 egress;		// interface index
	__u16 max_frame;	// longest frame that the egress takes, Ethernet header included
	__u16 mark;		// added to the tag of what is punted, so that it is counted

	// Frames sent the long way, as they count after segmentation, in the upper half; in the lower one how many
	// of them have left the switch, which the data plane writes. Both modulo 2^16.
	__u32 long_way;
	// FACT_* in the lowest byte, in the second one TCP's flags in the connection's first frame. Written by the
	// data plane, but for what says otherwise.
	__u32 facts;
	// Redirected, as they would count after segmentation, by the processor that counts.
	__u32 frames;
	__u64 bytes;
};

// In the other one is what only some need.
struct details {
	union far far;		// of the key; 0 for IPv4
	__u32 rule;		// for who looks
	__u32 seq;		// TCP: after the last byte sent, and its FIN
	__u32 ack;		// TCP: after the last byte acknowledged; asked, what the SYN-ACK acknowledges
	__u16 window;		// TCP: as in the header, unscaled
	__u16 draining;		// since when what is too much for the long way is dropped; 0 if it is not
	__u32 drained;		// frames dropped so
	__u32 frames;		// redirected, by processors that do not count
	__u64 bytes;
	__u32 begun;		// TCP: after the SYN of the SYN-ACK, if that was redirected
	__u32 other;		// TCP, where a SYN-ACK is waited for: the place of the connection's other flow
};

_Static_assert(sizeof(struct flow) == 64 && sizeof(struct details) == 64, "a line each");

// Cells of the index that are searched together: a cache line.
#define CELLS 16

// Where flows are. Each cell is 0, or one more than a place in express_flows and express_details, with bits of
// the flow's hash above.
struct bucket {
	__u32 cells[CELLS];
};

// Written by the data plane, but for tick and shut.
struct control {
	__u64 epoch;		// of the policy in force
	__u64 open_until;	// CLOCK_MONOTONIC, in nanoseconds; later the door is shut
	__u64 tick;		// of the kernel's clock, when it was last seen open
	__u32 punt;		// interface index
	__u32 devices;		// entries of express_devices
	__u32 buckets;		// of express_index in use, a power of two; the first one has that number
	__u32 tag;		// bits of a cell that are of the hash
	__u64 factor;		// of the hash: secret, and odd
	__u64 shut;		// frames dropped because the door was; counted here
	__u64 reserved;
	__u32 secret[2 * (HASHED_NEAR + HASHED_FAR)];	// of the hash
	__u32 reserved_too[6];
};

_Static_assert(sizeof(struct control) == 128, "two lines");

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

// The loader sets the size, a power of two.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} express_index SEC(".maps");

// The loader sets the size.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow);
} express_flows SEC(".maps");

// As many.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct details);
} express_details SEC(".maps");

// A frame's headers, as far as they were understood.
struct headers {
	union flow_key key;
	union far far;
	__u32 ingress;
	__u32 protocol;
	__u32 end;		// of the packet, in bytes from the frame's start
	__u32 transport;	// where TCP's, UDP's or ICMP's header begins
	__u32 payload;		// where their data begin
	__u32 seq;
	__u32 ack;
	__u16 window;
	__sum16 sum;		// TCP's or UDP's checksum; 0 for ICMP, whose is never partial
	__u8 special;		// for the switch to judge: TCP that is neither data, nor an ACK, nor an end
	__u8 answers;		// a SYN-ACK without data: special, but where one is waited for
	__u8 fin;		// ends its side of the connection
};

// Two words as one, as they stand in memory.
static __always_inline __u64 pair(__u32 first, __u32 second)
{
	return first | (__u64)second << 32;
}

// ICMP's and ICMPv6's header as echo messages have it.
struct echo {
	__u8 type;
	__u8 code;
	__sum16 sum;
	__be16 identifier;
	__be16 sequence;
};

static __always_inline int is_echo(const struct echo *echo, __u8 protocol)
{
	if (echo->code)
		return 0;
	if (protocol == IPPROTO_ICMP)
		return echo->type == ICMP_REQUEST || echo->type == ICMP_REPLY;
	return echo->type == ICMPV6_REQUEST || echo->type == ICMPV6_REPLY;
}

// 2^64 - 1, divided by 2^16 - 1. Its negative is what undoes a multiplication by 2^16 - 1, modulo 2^64.
#define FOLDS 0x0001000100010001ULL

// RFC 1071, over the header's twenty bytes: words of 16 bits that sum up to 0xffff, with each carry brought back,
// sum up to a multiple of it without. They cannot sum up to 0: the version is one of them. A multiple is what
// comes out small where the multiplication is undone, which takes less than to divide.
static __always_inline int ipv4_checksum_is_right(const struct iphdr *ip)
{
	const __u32 *words = (const void *)ip;
	__u64 sum = 0;
#pragma unroll
	for (int i = 0; i < 5; i++)
		sum += words[i];
	return sum * -FOLDS <= FOLDS;
}

// Eight bytes of a frame, which need not be aligned.
static __always_inline __u64 eight(const void *at)
{
	return *(const __u64 *)at;
}

// Takes from the transport header at `l4` what is of the key.
static __always_inline int take_ports(const void *l4, const void *end, struct headers *headers)
{
	const struct echo *echo = l4;
	__u32 ports;

	// What is shortest of TCP, UDP and ICMP.
	if (unlikely((const void *)(echo + 1) > end))
		return 0;
	switch (headers->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		ports = *(const __u32 *)l4;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		ports = echo->identifier | (__u32)*(const __be16 *)l4 << 16;
		break;
	default:
		return 0;
	}
	headers->key.words[1] = pair(ports, headers->ingress);
	return 1;
}

// Takes what a frame's verdict is found by, where it stands in one whose verdict can be here at all. Whether it
// is one is for `is_plain` to say, while memory is waited for. Bytes from `data` to `end` can be read; the frame
// came in at the interface of index `ingress`.
static __always_inline int take_key(const void *data, const void *end, __u32 ingress,
				    struct headers *headers)
{
	const struct ethhdr *eth = data;
	const __u32 *words = data;

	if (unlikely((const void *)(eth + 1) > end))
		return 0;
	headers->key.words[2] = eight(data);
	headers->ingress = ingress;
	if (*(const __be16 *)&words[3] == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = (const void *)(eth + 1);

		if (unlikely((const void *)(ip + 1) > end))
			return 0;
		headers->protocol = ip->protocol;
		headers->transport = sizeof(*eth) + sizeof(*ip);
		headers->key.words[0] = eight(&ip->saddr);
		headers->key.words[3] = pair(words[2], headers->protocol);
		return take_ports(ip + 1, end, headers);
	}
	if (*(const __be16 *)&words[3] == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = (const void *)(eth + 1);
		const __be32 *src, *dst;

		if (unlikely((const void *)(ip + 1) > end))
			return 0;
		src = ip->saddr.s6_addr32;
		dst = ip->daddr.s6_addr32;
		headers->protocol = ip->nexthdr;
		headers->transport = sizeof(*eth) + sizeof(*ip);
		headers->far.words[0] = eight(src);
		headers->far.words[1] = pair(src[2], dst[0]);
		headers->far.words[2] = eight(dst + 1);
		headers->key.words[0] = pair(src[3], dst[3]);
		headers->key.words[3] = pair(words[2], headers->protocol | KEY_IPV6);
		return take_ports(ip + 1, end, headers);
	}
	return 0;
}

// Whether the transport header at `l4` is one that the key was taken from, behind which the packet ends at
// headers->end. Takes the rest of it.
static __always_inline int is_plain_transport(const void *l4, const void *end, struct headers *headers)
{
	__u32 at = headers->transport;

	headers->special = headers->answers = headers->fin = 0;
	if (headers->protocol == IPPROTO_TCP) {
		const struct tcphdr *tcp = l4;
		__u8 flags;

		if (unlikely((const void *)(tcp + 1) > end || tcp->doff < 5))
			return 0;
		flags = ((const __u8 *)l4)[13];
		headers->payload = at + tcp->doff * 4;
		headers->sum = tcp->check;
		headers->fin = flags & TCP_FIN;
		headers->seq = bpf_ntohl(tcp->seq) + headers->end - headers->payload + headers->fin;
		headers->ack = bpf_ntohl(tcp->ack_seq);
		headers->window = bpf_ntohs(tcp->window);
		headers->special = (flags & (TCP_SYN | TCP_RST | TCP_ACK | TCP_URG)) != TCP_ACK;
		flags &= TCP_FIN | TCP_SYN | TCP_RST | TCP_PSH | TCP_ACK | TCP_URG;
		headers->answers = flags == (TCP_SYN | TCP_ACK) && headers->payload == headers->end;
	} else if (headers->protocol == IPPROTO_UDP) {
		const struct udphdr *udp = l4;

		if (unlikely((const void *)(udp + 1) > end || bpf_ntohs(udp->len) != headers->end - at))
			return 0;
		headers->payload = at + sizeof(*udp);
		headers->sum = udp->check;
	} else {
		const struct echo *echo = l4;

		if (unlikely((const void *)(echo + 1) > end || !is_echo(echo, headers->protocol)))
			return 0;
		headers->payload = at + sizeof(*echo);
		headers->sum = 0;
	}
	return headers->payload <= headers->end;
}

// Whether the frame is plain: a key that was taken from it is what it says. It is `len` bytes long. Takes the
// rest of its headers.
static __always_inline int is_plain(const void *data, const void *end, __u32 len,
				    struct headers *headers)
{
	const struct ethhdr *eth = data;

	if (headers->key.protocol & KEY_IPV6) {
		const struct ipv6hdr *ip = (const void *)(eth + 1);
		const __be32 *src;

		if (unlikely((const void *)(ip + 1) > end || ip->version != 6 || !ip->hop_limit))
			return 0;
		src = ip->saddr.s6_addr32;
		// The switch takes it for IPv4's.
		if (unlikely(!src[0] && !src[1] && src[2] == bpf_htonl(0xffff)))
			return 0;
		headers->end = sizeof(*eth) + sizeof(*ip) + bpf_ntohs(ip->payload_len);
		return headers->end <= len && is_plain_transport(ip + 1, end, headers);
	} else {
		const struct iphdr *ip = (const void *)(eth + 1);

		if (unlikely((const void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || !ip->ttl))
			return 0;
		// Any fragment: more to come, or an offset. Also the reserved bit.
		if (unlikely(ip->frag_off & bpf_htons(0xbfff) || !ipv4_checksum_is_right(ip)))
			return 0;
		headers->end = sizeof(*eth) + bpf_ntohs(ip->tot_len);
		return headers->end <= len && is_plain_transport(ip + 1, end, headers);
	}
}

static __always_inline int is_ipv6(const union flow_key *key)
{
	return !!(key->protocol & KEY_IPV6);
}

static __always_inline __u64 product(__u64 word, const __u32 *secret)
{
	return (__u64)((__u32)word + secret[0]) * (__u32)((__u32)(word >> 32) + secret[1]);
}

// NH (RFC 4418, section 5.2) and a multiplication: whoever does not know the secrets cannot aim at
// another's bucket. The same in dataplane/src/express/index.rs.
static __always_inline __u64 hash_of(const struct headers *headers, const struct control *control)
{
	const __u32 *secret = control->secret;
	__u64 sum = 0;
#pragma unroll
	for (int i = 0; i < HASHED_NEAR; i++)
		sum += product(headers->key.words[i], secret + 2 * i);
	if (is_ipv6(&headers->key)) {
		secret += 2 * HASHED_NEAR;
#pragma unroll
		for (int i = 0; i < HASHED_FAR; i++)
			sum += product(headers->far.words[i], secret + 2 * i);
	}
	sum *= control->factor;
	return sum ^ sum >> 32;
}

// Whether a flow's frames have what this one has.
static __always_inline int same(const union flow_key *a, const union flow_key *b)
{
	__u64 difference = 0;
#pragma unroll
	for (int i = 0; i < 4; i++)
		difference |= a->words[i] ^ b->words[i];
	return !difference;
}

static __always_inline int same_far(const union far *a, const union far *b)
{
	__u64 difference = 0;
#pragma unroll
	for (int i = 0; i < HASHED_FAR; i++)
		difference |= a->words[i] ^ b->words[i];
	return !difference;
}

// A verdict that was found, or where it should be.
struct found {
	struct flow *flow;
	__u32 at;		// its place
	__u32 epoch;		// its verdict's, as it was when it was first looked at
};

// Where a flow may stand in the index.
struct place {
	__u32 buckets[2];	// their numbers
	__u32 first;		// the cell of them that is looked at first
	__u32 tag;
};

static __always_inline struct place place_of(const struct headers *headers, const struct control *control)
{
	__u64 hash = hash_of(headers, control);
	__u32 buckets = READ_ONCE(control->buckets);
	struct place place = {
		.buckets = { buckets | (hash & (buckets - 1)), buckets | ((hash >> 24) & (buckets - 1)) },
		.first = (hash >> 48) % CELLS,
		.tag = (hash >> 32) & control->tag,
	};

	return place;
}

static __always_inline struct details *details_of(const struct found *found)
{
	return bpf_map_lookup_elem(&express_details, &found->at);
}

// What a cell names. 0 if there is nothing: what has another tag is beyond all flows.
static __always_inline int look(const struct bucket *bucket, __u32 cell, __u32 tag, struct found *found)
{
	found->at = (READ_ONCE(bucket->cells[cell % CELLS]) ^ tag) - 1;
	found->flow = bpf_map_lookup_elem(&express_flows, &found->at);
	if (!found->flow)
		return 0;
	found->epoch = READ_ONCE(found->flow->epoch);
	return 1;
}

// Whether its verdict is of that epoch, or of a later one, and for these very addresses. The index may be of an
// entry that was replaced a moment ago: the entry itself says whose it is.
static __always_inline int is_of(const struct found *found, const struct headers *headers, __u32 epoch)
{
	const struct details *details;

	if (found->epoch < epoch || !same(&found->flow->key, &headers->key))
		return 0;
	if (!is_ipv6(&headers->key))
		return 1;
	details = details_of(found);
	return details && same_far(&details->far, &headers->far);
}

// Whether the bucket of that number says where the flow is.
static __always_inline int find_in(__u32 number, const struct place *place, const struct headers *headers,
				   __u32 epoch, struct found *found)
{
	const struct bucket *bucket = bpf_map_lookup_elem(&express_index, &number);

	if (!bucket)
		return 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < CELLS; i++) {
		if (look(bucket, place->first + i, place->tag, found) && is_of(found, headers, epoch))
			return 1;
	}
	return 0;
}

// Looks where the flow is in most cases, as early as can be: so its lines are on their way from memory while the
// frame is taken apart.
static __always_inline void reach(const struct place *place, struct found *found)
{
	const struct bucket *bucket = bpf_map_lookup_elem(&express_index, &place->buckets[0]);

	if (!bucket || !look(bucket, place->first, place->tag, found))
		found->flow = NULL;
}

// Whether nothing has passed on the flow's verdict, because it waits for the connection's SYN-ACK.
static __always_inline int is_asked(const struct flow *flow)
{
	return !READ_ONCE(flow->long_way) && READ_ONCE(flow->facts) & FACT_ASKED;
}

// The SYN-ACK passes: from now on the flow's verdict holds for all frames, as if one had been punted, and had
// left. Not if it was the switch that let it pass.
static __always_inline int begin(struct flow *flow)
{
	if (!(__sync_fetch_and_and(&flow->facts, ~FACT_ASKED) & FACT_ASKED))
		return 0;
	__sync_fetch_and_add(&flow->long_way, 1 << 16 | 1);
	return 1;
}

// Whether the frame is the SYN-ACK that a flow waits for. Then both of the connection's begin: what was
// asked, its sender has agreed to.
static __always_inline int is_answered(const struct found *found, struct headers *headers)
{
	struct details *details = details_of(found);
	struct flow *flow = found->flow, *other;

	if (!headers->answers || !(flow->facts & FACT_REPLY) || !details ||
	    details->ack != headers->ack || !begin(flow))
		return 0;
	headers->special = 0;
	details->begun = ++headers->seq;
	// The two are removed together, so the place is no other flow's.
	other = bpf_map_lookup_elem(&express_flows, &details->other);
	if (other)
		begin(other);
	return 1;
}

// Whether there is an entry of the flow that may be used for the frame. `found` is what was reached.
static __always_inline int find(struct headers *headers, const struct control *control,
				const struct place *place, struct found *found)
{
	__u32 epoch = READ_ONCE(control->epoch);

	if (unlikely(!(found->flow && is_of(found, headers, epoch))) &&
	    !find_in(place->buckets[0], place, headers, epoch, found) &&
	    // Where it is if that bucket was full.
	    !find_in(place->buckets[1], place, headers, epoch, found))
		return 0;
	return !is_asked(found->flow) || is_answered(found, headers);
}

// Notes that so many frames of a flow, as they count after segmentation, go the long way. Their mark is read
// before: should the count begin anew in between, they hold the flow, and do not let it go too early.
static __always_inline void note_punted(struct flow *flow, __u32 frames)
{
	__sync_fetch_and_add(&flow->long_way, frames << 16);
}

// Frames of the flow that are on the long way.
static __always_inline __u16 on_long_way(const struct flow *flow)
{
	__u32 both = READ_ONCE(flow->long_way);

	return (both >> 16) - both;
}

// Whether the flow's frames still go the long way: until the switch has sent on what was punted, later
// frames would arrive first by the other.
static __always_inline int is_held(const struct flow *flow)
{
	return !(READ_ONCE(flow->long_way) >> 16) || on_long_way(flow);
}

// Whether a held flow has too much on the long way for this frame to follow.
static __always_inline int is_excess(const struct flow *flow, struct details *details)
{
	__u16 since = READ_ONCE(details->draining), units = (bpf_ktime_get_coarse_ns() >> 20) | 1;

	if (since && (__u16)(units - since) < DRAIN)
		return 1;
	if ((__u8)flow->key.protocol == IPPROTO_TCP || since || on_long_way(flow) < MOST_HELD) {
		details->draining = 0;
		return 0;
	}
	details->draining = units;
	return 1;
}

// What becomes of a frame whose verdict is known.
enum way {
	SHORT_WAY,	// redirected by its verdict
	LONG_WAY,	// to the switch
	NO_WAY,		// dropped, and counted as such
};

// The way of a frame that counts as so many on the wire.
static __always_inline enum way way_of(const struct found *found, const struct headers *headers,
				       __u32 frames)
{
	struct details *details;

	if (likely(!is_held(found->flow)))
		return headers->special ? LONG_WAY : SHORT_WAY;
	details = details_of(found);
	if (!details || !is_excess(found->flow, details))
		return LONG_WAY;
	__sync_fetch_and_add(&details->drained, frames);
	return NO_WAY;
}

// Whether the switch has not been heard of for too long: then nothing passes, and is counted. The time
// is told by the kernel's tick, so it is looked at once in each.
static __always_inline int is_shut(struct control *control)
{
	__u64 tick = bpf_jiffies64();

	if (likely(READ_ONCE(control->tick) == tick))
		return 0;
	if (bpf_ktime_get_coarse_ns() <= READ_ONCE(control->open_until)) {
		control->tick = tick;
		return 0;
	}
	__sync_fetch_and_add(&control->shut, 1);
	return 1;
}

static __always_inline int is_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

// Whether this processor is the one that counts the flow without locks: the one that counted it first.
// Programs of ours do not interrupt each other on a processor. `*is_first` says if this is the first time.
static __always_inline int counts(struct flow *flow, int *is_first)
{
	__u32 facts = READ_ONCE(flow->facts), me = bpf_get_smp_processor_id() + 1;
	__u32 counter = facts >> FACT_COUNTER;

	*is_first = !counter;
	if (likely(counter))
		return counter == me;
	return __sync_val_compare_and_swap(&flow->facts, facts, facts | me << FACT_COUNTER) == facts;
}

// Keeps TCP's last numbers. Nothing follows a FIN, whatever its sender goes on to send.
static __always_inline void follow(struct flow *flow, struct details *details,
				   const struct headers *headers, int is_first)
{
	if (is_first || (!(flow->facts & FACT_ENDED) && is_after(headers->seq, details->seq)))
		details->seq = headers->seq;
	if (is_first || !is_after(details->ack, headers->ack)) {
		details->ack = headers->ack;
		details->window = headers->window;
	}
	if (headers->fin)
		__sync_fetch_and_or(&flow->facts, FACT_ENDED);
}

static __always_inline void count(const struct found *found, const struct headers *headers, __u32 frames)
{
	__u32 bytes = headers->end + (frames - 1) * headers->payload;
	struct flow *flow = found->flow;
	int is_first, is_ours = counts(flow, &is_first);
	struct details *details;

	if (is_ours) {
		flow->bytes += bytes;
		flow->frames += frames;
		if (headers->protocol != IPPROTO_TCP)
			return;
	}
	details = details_of(found);
	if (!details)
		return;
	if (!is_ours) {
		__sync_fetch_and_add(&details->bytes, bytes);
		__sync_fetch_and_add(&details->frames, frames);
	}
	if (headers->protocol == IPPROTO_TCP)
		follow(flow, details, headers, is_first);
}
