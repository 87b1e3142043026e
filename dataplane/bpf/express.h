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

// Types of ICMP's and ICMPv6's echo messages (RFC 792, RFC 4443), each with code 0.
#define ICMP_REQUEST 8
#define ICMP_REPLY 0
#define ICMPV6_REQUEST 128
#define ICMPV6_REPLY 129

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))

// What is the same in every frame of one direction of a conversation, and how it travels between Ethernet
// addresses: what a frame must have in common with a verdict. The ingress interface is part of it, so
// nobody can use what was judged for another.
union flow_key {
	struct {
		__u8 src[16];		// IPv4 as ::ffff:a.b.c.d
		__u8 dst[16];
		__be16 src_port;	// an echo's identifier
		__be16 dst_port;	// an echo's type and code
		__u32 ingress;		// interface index
		__u8 eth_dst[6];
		__u8 eth_src[6];
		__u32 protocol;
	};
	__u64 words[7];			// it is taken from the frame, hashed and compared by words
};

// Words that are hashed: addresses, ports and interface.
#define HASHED 5

// At the device's peer in another namespace, without passing its queue; else it leaves through it.
#define FACT_PEER 1
// The connection's second flow: for who takes it over.
#define FACT_REPLY 2
// TCP: its last byte was sent, and a FIN. Written here.
#define FACT_ENDED 4
// Where the processor stands that counts without locks, one more than its number, or 0.
#define FACT_COUNTER 16

// A verdict and what came of it, in two cache lines: what a lookup compares, and what it does then.
struct flow {
	// Written by the data plane, and only read here.
	union flow_key key;
	__u64 epoch;

	// Likewise.
	__u32 egress;		// interface index
	__u32 rule;
	__u16 max_frame;	// longest frame that the egress takes, Ethernet header included
	__u16 mark;		// added to the tag of what is punted, so that it is counted
	__u32 passed;		// of the punted, how many have left the switch
	// Likewise, but for the counter and the end: FACT_* in the lowest byte, in the second one TCP's flags in the
	// connection's first frame.
	__u32 facts;

	__u32 punted;		// frames sent the long way, as they count after segmentation
	__u32 seq;		// TCP: after the last byte sent, and its FIN
	__u32 ack;		// TCP: after the last byte acknowledged
	__u16 window;		// TCP: as in the header, unscaled
	__u16 draining;		// since when what is too much for the long way is dropped; 0 if it is not
	__u32 drained;		// frames dropped so
	// Redirected, as they would count after segmentation: by the processor that counts, and by others.
	__u32 frames;
	__u32 frames_elsewhere;
	__u64 bytes;
	__u64 bytes_elsewhere;
};

_Static_assert(sizeof(struct flow) == 128 && __builtin_offsetof(struct flow, egress) == 64, "two lines");

// Cells of the index that are searched together: a cache line.
#define CELLS 16

// Where flows are. Each cell is 0, or one more than a place in express_flows, with bits of the flow's
// hash above.
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
	__u32 buckets;		// of express_index, less one: all bits of a number of one
	__u32 tag;		// bits of a cell that are of the hash
	__u64 factor;		// of the hash: secret, and odd
	__u64 shut;		// frames dropped because the door was; counted here
	__u64 reserved;
	__u32 secret[2 * HASHED];	// of the hash
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

// A frame's headers, as far as they were understood.
struct headers {
	union flow_key key;
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

// RFC 1071, over the header's twenty bytes.
static __always_inline int ipv4_checksum_is_right(const struct iphdr *ip)
{
	const __u32 *words = (const void *)ip;
	__u64 sum = 0;
#pragma unroll
	for (int i = 0; i < 5; i++)
		sum += words[i];
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)((sum & 0xffff) + (sum >> 16)) == 0xffff;
}

// The transport header at `l4`, behind which the packet ends at headers->end.
static __always_inline int parse_transport(struct headers *headers, __u8 protocol, const void *l4,
					   __u32 at, const void *end)
{
	__u32 ports;

	headers->transport = at;
	headers->protocol = protocol;
	if (protocol == IPPROTO_TCP) {
		const struct tcphdr *tcp = l4;
		__u8 flags;

		if ((const void *)(tcp + 1) > end || tcp->doff < 5)
			return 0;
		flags = ((const __u8 *)l4)[13];
		headers->payload = at + tcp->doff * 4;
		headers->sum = tcp->check;
		headers->fin = flags & TCP_FIN;
		headers->seq = bpf_ntohl(tcp->seq) + headers->end - headers->payload + headers->fin;
		headers->ack = bpf_ntohl(tcp->ack_seq);
		headers->window = bpf_ntohs(tcp->window);
		headers->special = (flags & (TCP_SYN | TCP_RST | TCP_ACK | TCP_URG)) != TCP_ACK;
		ports = *(const __u32 *)l4;
	} else if (protocol == IPPROTO_UDP) {
		const struct udphdr *udp = l4;

		if ((const void *)(udp + 1) > end || bpf_ntohs(udp->len) != headers->end - at)
			return 0;
		headers->payload = at + sizeof(*udp);
		headers->sum = udp->check;
		ports = *(const __u32 *)l4;
	} else if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6) {
		const struct echo *echo = l4;

		if ((const void *)(echo + 1) > end || !is_echo(echo, protocol))
			return 0;
		headers->payload = at + sizeof(*echo);
		ports = echo->identifier | (__u32)*(const __be16 *)l4 << 16;
	} else {
		return 0;
	}
	headers->key.words[4] = pair(ports, headers->ingress);
	return headers->payload <= headers->end;
}

// Fills `headers`, if the frame is one whose verdict can be here at all. It is `len` bytes long, of
// which those from `data` to `end` can be read, and came in at the interface of index `ingress`.
static __always_inline int parse(const void *data, const void *end, __u32 len, __u32 ingress,
				 struct headers *headers)
{
	const struct ethhdr *eth = data;
	const __u32 *words = data;

	if ((const void *)(eth + 1) > end)
		return 0;
	headers->key.words[5] = pair(words[0], words[1]);
	headers->ingress = ingress;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = (const void *)(eth + 1);

		if ((const void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || !ip->ttl)
			return 0;
		// Any fragment: more to come, or an offset. Also the reserved bit.
		if (ip->frag_off & bpf_htons(0xbfff) || !ipv4_checksum_is_right(ip))
			return 0;
		headers->key.words[0] = headers->key.words[2] = 0;
		headers->key.words[1] = pair(bpf_htonl(0xffff), ip->saddr);
		headers->key.words[3] = pair(bpf_htonl(0xffff), ip->daddr);
		headers->key.words[6] = pair(words[2], ip->protocol);
		headers->end = sizeof(*eth) + bpf_ntohs(ip->tot_len);
		if (headers->end > len)
			return 0;
		return parse_transport(headers, ip->protocol, ip + 1, sizeof(*eth) + sizeof(*ip), end);
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = (const void *)(eth + 1);

		if ((const void *)(ip + 1) > end || ip->version != 6 || !ip->hop_limit)
			return 0;
#pragma unroll
		for (int i = 0; i < 4; i++)
			headers->key.words[i] = ((const __u64 *)&ip->saddr)[i];
		// It would pass for IPv4's.
		if (!headers->key.words[0] && (__u32)headers->key.words[1] == bpf_htonl(0xffff))
			return 0;
		headers->key.words[6] = pair(words[2], ip->nexthdr);
		headers->end = sizeof(*eth) + sizeof(*ip) + bpf_ntohs(ip->payload_len);
		if (headers->end > len)
			return 0;
		return parse_transport(headers, ip->nexthdr, ip + 1, sizeof(*eth) + sizeof(*ip), end);
	}
	return 0;
}

// NH (RFC 4418, section 5.2) and a multiplication: whoever does not know the secrets cannot aim at
// another's bucket. The same in dataplane/src/express/index.rs.
static __always_inline __u64 hash_of(const union flow_key *key, const struct control *control)
{
	const __u32 *secret = control->secret;
	__u64 sum = 0;
#pragma unroll
	for (int i = 0; i < HASHED; i++) {
		__u32 first = key->words[i], second = key->words[i] >> 32;

		first += secret[2 * i];
		second += secret[2 * i + 1];
		sum += (__u64)first * second;
	}
	sum *= control->factor;
	return sum ^ sum >> 32;
}

static __always_inline int same(const union flow_key *a, const union flow_key *b)
{
	__u64 difference = 0;
#pragma unroll
	for (int i = 0; i < 7; i++)
		difference |= a->words[i] ^ b->words[i];
	return !difference;
}

// The flow's entry, if the bucket of that number says where it is, and its verdict is of that epoch, or
// of the next, and for these very addresses. `first` is the cell where it should be.
static __always_inline struct flow *find_in(__u32 number, __u32 first, __u32 tag,
					    const union flow_key *key, __u64 epoch)
{
	const struct bucket *bucket = bpf_map_lookup_elem(&express_index, &number);

	if (!bucket)
		return NULL;
#pragma clang loop unroll(disable)
	for (int i = 0; i < CELLS; i++) {
		// What has another tag is beyond all flows.
		__u32 at = (READ_ONCE(bucket->cells[(first + i) % CELLS]) ^ tag) - 1;
		struct flow *flow = bpf_map_lookup_elem(&express_flows, &at);

		// The index may be of an entry that was replaced a moment ago: the entry itself says
		// whose it is.
		if (flow && READ_ONCE(flow->epoch) >= epoch && same(&flow->key, key))
			return flow;
	}
	return NULL;
}

// The flow's entry, if there is one that may be used.
static __always_inline struct flow *find(const struct headers *headers, const struct control *control)
{
	__u64 hash = hash_of(&headers->key, control), epoch = READ_ONCE(control->epoch);
	__u32 tag = (hash >> 32) & control->tag, first = (hash >> 48) % CELLS;
	struct flow *flow = find_in(hash & control->buckets, first, tag, &headers->key, epoch);

	// Where it is if that bucket was full.
	return flow ?: find_in((hash >> 24) & control->buckets, first, tag, &headers->key, epoch);
}

// Whether the flow's frames still go the long way: until the switch has sent on what was punted, later
// frames would arrive first by the other.
static __always_inline int is_held(const struct flow *flow)
{
	__u32 punted = READ_ONCE(flow->punted);

	return !punted || punted != READ_ONCE(flow->passed);
}

// Whether a held flow has too much on the long way for this frame to follow.
static __always_inline int is_excess(struct flow *flow)
{
	__u16 since = READ_ONCE(flow->draining), units = (bpf_ktime_get_coarse_ns() >> 20) | 1;

	if (since && (__u16)(units - since) < DRAIN)
		return 1;
	if (flow->key.protocol == IPPROTO_TCP || since ||
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
static __always_inline enum way way_of(struct flow *flow, const struct headers *headers, __u32 frames)
{
	if (!is_held(flow))
		return headers->special ? LONG_WAY : SHORT_WAY;
	if (!is_excess(flow))
		return LONG_WAY;
	__sync_fetch_and_add(&flow->drained, frames);
	return NO_WAY;
}

// Whether the switch has not been heard of for too long: then nothing passes, and is counted. The time
// is told by the kernel's tick, so it is looked at once in each.
static __always_inline int is_shut(struct control *control)
{
	__u64 tick = bpf_jiffies64();

	if (READ_ONCE(control->tick) == tick)
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
	if (counter)
		return counter == me;
	return __sync_val_compare_and_swap(&flow->facts, facts, facts | me << FACT_COUNTER) == facts;
}

static __always_inline void count(struct flow *flow, const struct headers *headers, __u32 frames)
{
	__u32 bytes = headers->end + (frames - 1) * headers->payload;
	int is_first, is_ours = counts(flow, &is_first);

	if (headers->protocol == IPPROTO_TCP) {
		if (is_first || is_after(headers->seq, flow->seq))
			flow->seq = headers->seq;
		if (is_first || !is_after(flow->ack, headers->ack)) {
			flow->ack = headers->ack;
			flow->window = headers->window;
		}
		if (headers->fin)
			__sync_fetch_and_or(&flow->facts, FACT_ENDED);
	}
	if (is_ours) {
		flow->bytes += bytes;
		flow->frames += frames;
	} else {
		__sync_fetch_and_add(&flow->bytes_elsewhere, bytes);
		__sync_fetch_and_add(&flow->frames_elsewhere, frames);
	}
}
