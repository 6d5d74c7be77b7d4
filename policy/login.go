package policy

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// login is a client that proves itself with a user name and a password.
type login struct {
	client   string
	networks []netip.Prefix // none for anywhere
	password config.Secret
	first    bool // of a client of an auth stream
}

// logins is what outlives one configuration: who has proved to be who, who guesses, and whose turn it is to be checked.
type logins struct {
	key      []byte // of proofs; lives and dies with the process
	tries    *tries
	hashing  *hashing
	mu       sync.Mutex
	verified *lru[proof, struct{}]
}

// proof stands for a user and password that were right for a password file of these contents, from one source. It says
// nothing to whoever does not have the key. That the source is part of it keeps others from guessing unhindered.
type proof [sha256.Size]byte

// maxVerified bounds the proofs: logins that cost no hash.
const maxVerified = 10000

func newLogins() *logins {
	l := &logins{key: make([]byte, sha256.Size), tries: newTries(), hashing: newHashing(), verified: newLRU[proof, struct{}](maxVerified)}
	rand.Read(l.key)
	return l
}

func (l *logins) proof(source, user, password string, contents []config.Password) (p proof) {
	h := hmac.New(sha256.New, l.key)
	write := func(s string) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s))))
		h.Write([]byte(s))
	}
	for _, s := range []string{source, user, password} {
		write(s)
	}
	for _, c := range contents {
		if c.Hash != nil {
			write(c.Hash.String())
		} else {
			write(c.Plain)
		}
	}
	h.Sum(p[:0])
	return p
}

func (l *logins) isVerified(p proof) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.verified.get(p)
	return ok
}

func (l *logins) remember(p proof) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.verified.put(p, struct{}{})
}

// Offers reports whether AUTH is offered on listener.
func (p *Policy) Offers(listener string) bool {
	door := p.listeners[listener]
	return door != nil && (door.anyLogin || len(door.logins) > 0)
}

// Login returns the client that user and password make of peer on listener. Whoever is wrong gets 535 5.7.8, whatever
// was wrong, the later the oftener it was; whoever tries too often 454 4.7.0. What was right before, from the same source
// and against the same password file, is right at once and costs no hash.
func (p *Policy) Login(ctx context.Context, listener string, peer message.Peer, user, password string) (string, error) {
	door := p.listeners[listener]
	if door == nil {
		return "", fmt.Errorf("log in a client: listener %q is not in the configuration", listener)
	}
	if door.anyLogin {
		return p.loginByAddress(listener, peer)
	}
	source, begun := sourceOf(peer), time.Now()
	who := door.logins[user]
	contents, err := who.passwords()
	if err != nil {
		return "", temporarily(err)
	}
	proof := p.logins.proof(source, user, password, contents)
	known := who.admits(peer) && p.logins.isVerified(proof)
	switch {
	case known:
		return who.client, nil
	case !p.logins.tries.begin(source, begun):
		wait(ctx, firstDelay)
		return "", reply.New(454, "4.7.0", "Too many failed logins from your address; try again in a minute")
	}
	right, err := p.verify(ctx, door, who, contents, password)
	if err != nil {
		p.logins.tries.giveBack(source)
		return "", temporarily(err)
	}
	if !right || !who.admits(peer) {
		wait(ctx, p.logins.tries.failed(source, user, begun)-time.Since(begun))
		return "", errWrong()
	}
	p.logins.tries.giveBack(source)
	p.logins.tries.passed(source, user)
	p.logins.remember(proof)
	return who.client, nil
}

// loginByAddress takes any login of a peer that is a client without one.
func (p *Policy) loginByAddress(listener string, peer message.Peer) (string, error) {
	client, err := p.Identify(listener, peer)
	if err == nil && client == "" {
		err = errWrong()
	}
	return client, err
}

// errWrong is the one answer to a wrong login, whatever was wrong.
func errWrong() error { return reply.New(535, "5.7.8", "Authentication failed") }

// verify reports whether password is one of contents, which are those of who. Where that costs no hash, but a hash of
// another login would have, one is computed in its place: the time must not tell which users there are.
func (p *Policy) verify(ctx context.Context, door *listener, who *login, contents []config.Password, password string) (bool, error) {
	if len(password) > config.MaxPassword {
		password = "" // no file has such a password, and an empty one is none
	}
	first := who == nil && door.first || who != nil && who.first
	right, err := p.logins.hashing.verify(ctx, contents, password, first)
	if err != nil || right || slices.ContainsFunc(contents, isHashed) {
		return right && password != "", err
	}
	_, err = p.logins.hashing.verify(ctx, door.decoy(), password, first)
	return false, err
}

func isHashed(p config.Password) bool { return p.Hash != nil }

// decoy returns the hashes of one login of the listener: what a wrong login costs here. None where all are plain.
func (l *listener) decoy() []config.Password {
	for _, name := range l.users {
		if ps, err := l.logins[name].passwords(); err == nil && slices.ContainsFunc(ps, isHashed) {
			return ps
		}
	}
	return nil
}

// passwords returns what the password of l is verified against; none for nobody.
func (l *login) passwords() ([]config.Password, error) {
	if l == nil {
		return nil, nil
	}
	return l.password.Passwords()
}

// admits reports whether peer is where l may come from. A peer without an address is in no network.
func (l *login) admits(peer message.Peer) bool {
	return l != nil && (len(l.networks) == 0 || contains(l.networks, plain(peer.Addr)))
}

// temporarily turns what keeps us from an answer into one: our own troubles must not look like a wrong password.
func temporarily(err error) error {
	text := "Logins cannot be checked for now, please try again later"
	if errors.Is(err, errBusy) {
		text = "Too many logins are being checked, please try again later"
	}
	return &reply.Error{Code: 454, Enhanced: "4.7.0", Text: text, Err: fmt.Errorf("check a login: %w", err)}
}

// wait sleeps for d or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// equal compares in a time that tells nothing of either string: not even the length.
func equal(a, b string) int {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:])
}
