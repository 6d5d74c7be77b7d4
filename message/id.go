package message

import (
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// ID names a message: 41 bits of milliseconds since 2025-01-01 UTC, 10 bits of node, 12 bits of counter. Ids of one
// node only grow, so appends stay at the right edge of an index and history can be cut by range.
type ID int64

// IDEpoch is the instant that the time part of an ID counts from.
var IDEpoch = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	idNodeBits    = 10
	idCounterBits = 12
)

// idText is Crockford's alphabet in lower case: no i, l, o or u, sorts as the number does.
var idText = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewID composes an id. Node must be below 1024, counter below 4096.
func NewID(at time.Time, node, counter int) ID {
	return ID(at.Sub(IDEpoch).Milliseconds()<<(idNodeBits+idCounterBits) | int64(node)<<idCounterBits | int64(counter))
}

// Time returns when the id was made, to the millisecond.
func (id ID) Time() time.Time {
	return IDEpoch.Add(time.Duration(int64(id)>>(idNodeBits+idCounterBits)) * time.Millisecond)
}

// Node returns the number of the node that made the id.
func (id ID) Node() int { return int(int64(id) >> idCounterBits & (1<<idNodeBits - 1)) }

// String returns the id as 13 characters of base32.
func (id ID) String() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(id))
	return idText.EncodeToString(b[:])
}

// ParseID reads what String wrote; upper case is accepted too.
func ParseID(s string) (ID, error) {
	b, err := idText.DecodeString(strings.ToLower(s))
	if err != nil || len(b) != 8 || int64(binary.BigEndian.Uint64(b)) <= 0 {
		return 0, fmt.Errorf("%q is not a message id (13 characters, as in \"queued as 06b7v2c80g000\")", s)
	}
	return ID(binary.BigEndian.Uint64(b)), nil
}

// MarshalText makes an ID its text in JSON.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (id *ID) UnmarshalText(b []byte) error {
	v, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}
