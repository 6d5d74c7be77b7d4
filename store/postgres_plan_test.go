package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"gatepost/message"
	"gatepost/store/storetest/pgtest"
)

// pgPlan is a node of what EXPLAIN tells.
type pgPlan struct {
	Node    string   `json:"Node Type"`
	Table   string   `json:"Relation Name"`
	Index   string   `json:"Index Name"`
	Cond    string   `json:"Index Cond"`
	Rows    float64  `json:"Actual Rows"`
	Loops   float64  `json:"Actual Loops"`
	Removed float64  `json:"Rows Removed by Filter"`
	Hit     int      `json:"Shared Hit Blocks"`
	Read    int      `json:"Shared Read Blocks"`
	Plans   []pgPlan `json:"Plans"`
}

// all returns p and what is below it.
func (p pgPlan) all() []pgPlan {
	nodes := []pgPlan{p}
	for _, below := range p.Plans {
		nodes = append(nodes, below.all()...)
	}
	return nodes
}

// touched returns how many rows of a table were looked at.
func (p pgPlan) touched(table string) (n int) {
	for _, node := range p.all() {
		if node.Table == table && node.Node != "ModifyTable" {
			n += int((node.Rows + node.Removed) * node.Loops)
		}
	}
	return n
}

// explain runs a query as the engine would, by its generic plan, undoes it, and returns how it was done.
func explain(t testing.TB, s *Store, query string, args ...any) pgPlan {
	t.Helper()
	ctx := context.Background()
	conn := must(pgx.ConnectConfig(ctx, s.fleet.conns.Copy()))
	defer conn.Close(ctx)
	tx := must(conn.Begin(ctx))
	defer tx.Rollback(ctx)
	if _, err := tx.Exec(ctx, "PREPARE q AS "+s.fleet.text(query)); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	var values []string
	for _, a := range args {
		switch a := a.(type) {
		case string:
			values = append(values, "'"+a+"'")
		default:
			values = append(values, fmt.Sprint(a))
		}
	}
	execute := "EXECUTE q"
	if len(values) > 0 {
		execute += "(" + strings.Join(values, ", ") + ")"
	}
	var text []byte
	if err := tx.QueryRow(ctx, "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+execute, pgx.QueryExecModeSimpleProtocol).Scan(&text); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	var plans []struct{ Plan pgPlan }
	if err := json.Unmarshal(text, &plans); err != nil {
		t.Fatal(err)
	}
	return plans[0].Plan
}

// wantWalk checks that a plan is a walk over indexes, and that it walks over one of them.
func wantWalk(t *testing.T, name string, p pgPlan, index string) {
	t.Helper()
	var nodes []string
	for _, n := range p.all() {
		nodes = append(nodes, n.Node+" "+n.Index)
		if strings.HasPrefix(n.Node, "Index") && n.Cond == "" && name != "next expiry" { // which has an end as soon as it finds one
			t.Errorf("%s walks over all of %s", name, n.Index)
		}
		if n.Table != "node" && slices.Contains([]string{"Seq Scan", "Sort", "Incremental Sort", "Bitmap Heap Scan", "Hash Join", "Merge Join", "Hash"}, n.Node) {
			t.Errorf("%s: there is a %s of %s", name, n.Node, n.Table)
		}
	}
	if !slices.ContainsFunc(p.all(), func(n pgPlan) bool { return n.Index == index }) {
		t.Errorf("%s does not use %s: %q", name, index, nodes)
	}
}

func TestClaimsTouchLittleMoreThanTheyReturnWithAMillionRowsInFront(t *testing.T) {
	t.Parallel()
	const millions, ours, max = 1_000_000, 500, 100
	s := newTestFleet(t, pgtest.Shared(t)).node(t, "a")
	now := time.Now().UnixMilli()
	_, schema, _ := strings.Cut(string(must(migrations.ReadFile("migrations/postgres/0001_spool.sql"))), "CREATE INDEX recipient_due ")
	due, _, _ := strings.Cut(schema, ";")
	for _, sql := range []string{
		"ALTER TABLE recipient SET UNLOGGED",
		"DROP INDEX recipient_due", // made again below, which is quicker than to keep it up
		"ALTER TABLE recipient DROP CONSTRAINT recipient_pkey",
		"INSERT INTO message SELECT i, 'news', 'c', '', 'example.com', 10, 0, NULL, $1::bigint, $1::bigint + 3600000, NULL, '' FROM generate_series(1, 1000) i",
		`INSERT INTO recipient SELECT 1 + i % 1000, i / 1000, 'a@example.net', 'news', 'e0', 0, $1::bigint - 600000 + i % 1000, 0, false, 0, 0, 0, '', '', ''
			FROM generate_series(1, ` + fmt.Sprint(millions) + `) i`,
		`INSERT INTO recipient SELECT 1 + i % 1000, 2000 + i / 1000, 'a@example.net', 'news', 'e1', 0, $1::bigint - 1000 + i, 0, false, 0, 0, 0, '', '', ''
			FROM generate_series(1, ` + fmt.Sprint(ours) + `) i`,
		"CREATE INDEX recipient_due " + due,
		"ALTER TABLE recipient ADD CONSTRAINT recipient_pkey PRIMARY KEY(message, n)",
	} {
		conn := must(pgx.ConnectConfig(t.Context(), s.fleet.conns.Copy()))
		must(conn.Exec(t.Context(), "SET statement_timeout = 0"))
		args := []any{now}
		if !strings.Contains(sql, "$1") {
			args = nil
		}
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		conn.Close(t.Context())
	}
	for name, tt := range map[string]struct {
		query string
		args  []any
		index string
		rows  int
		limit int // of rows of recipient that are touched
	}{
		"claim":          {pgClaimDue, []any{"news", "e1", now, now, max}, "recipient_due", max, 2 * max},
		"claim far":      {pgClaimFar, []any{"news", "e1", now + longestStep.Milliseconds(), now, max}, "recipient_due", 0, 0},
		"needs":          {needFirst, []any{"news", ""}, "recipient_due", 1, 1},
		"more needs":     {needAbove, []any{"news", "e0"}, "recipient_due", 1, 1},
		"due":            {dueNear, []any{"news", "e1", now}, "recipient_due", 1, 1},
		"due far":        {dueFar, []any{"news", "e1", now}, "recipient_due", 0, 0},
		"of a dead node": {deadSelect, []any{deadPage}, "recipient_owned", 0, 0},
		"expire":         {(&pgDB{}).locking(expireSelect), []any{now, expirePage}, "message_expires", 0, 0},
		"next expiry":    {nextExpiry, nil, "message_expires", 1, 1},
		"supersede":      {(&pgDB{}).locking(supersedeSelect), []any{`\x00`, now}, "message_supersede", 0, 0},
		"still sealed":   {keyUsed, []any{1}, "body_sealed", 1, 0},
	} {
		p := explain(t, s, tt.query, tt.args...)
		wantWalk(t, name, p, tt.index)
		if n := p.touched("recipient"); int(p.Rows) != tt.rows || n > tt.limit {
			t.Errorf("%s: %v rows, %d touched, want %d, at most %d", name, p.Rows, n, tt.rows, tt.limit)
		}
		if pages := p.Hit + p.Read; pages > 12*tt.rows+30 {
			t.Errorf("%s: %d pages for %d rows", name, pages, tt.rows)
		}
	}
	for left := ours; left > 0; left -= max {
		start := time.Now()
		ds, err := s.Claim(t.Context(), "news", []string{"e1"}, max, 1<<30)
		n := 0
		for _, d := range ds {
			n += len(d.Message.Recipients)
		}
		if n != max || err != nil {
			t.Fatalf("claimed %d, %v", n, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %v", took)
		}
	}
}

func TestPlansMadeForAnEmptyQueueServeAFullOne(t *testing.T) {
	t.Parallel()
	s := newTestFleet(t, pgtest.Shared(t)).node(t, "a")
	must(s.fleet.pool.Exec(t.Context(), "VACUUM ANALYZE")) // which tells the planner that there is nothing
	for name, tt := range map[string]struct {
		query, index string
		args         []any
	}{
		"claim":     {pgClaimDue, "recipient_due", []any{"news", "e1", 1, 1, 100}},
		"dead":      {deadSelect, "recipient_owned", []any{deadPage}},
		"expire":    {(&pgDB{}).locking(expireSelect), "message_expires", []any{1, expirePage}},
		"supersede": {(&pgDB{}).locking(supersedeSelect), "message_supersede", []any{`\x00`, 1}},
	} {
		wantWalk(t, name, explain(t, s, tt.query, tt.args...), tt.index)
	}
	for name, tt := range map[string]struct {
		query, index string
		args         []any
	}{
		"ended":    {settleEnded, "recipient_pkey", []any{1, "{1}", "{0}", "{1}"}},
		"paused":   {settlePaused, "recipient_pkey", []any{1, "{1}", "{0}", "{1}"}},
		"deferred": {settleOthers, "recipient_pkey", []any{1, "{1}", "{0}", "{1}", "{0}", "{1}", "{0}", "{f}", "{0}", "{a}", "{a}", "{a}"}},
		"stamp":    {stampRows, "recipient_pkey", []any{1, 1, "{1}", "{0}"}},
		"remove":   {deleteRecipients, "recipient_pkey", []any{"{1}", "{0}"}},
		"messages": {deleteMessages, "message_pkey", []any{"{1}"}},
		"bodies":   {deleteBodies, "body_pkey", []any{"{1}"}},
		"release":  {releaseRows, "recipient_pkey", []any{1, 1, "{1}", "{0}"}},
		"free":     {freeRows, "recipient_pkey", []any{"{1}", "{0}", 1}},
		"lock":     {lockMessages, "message_pkey", []any{"{1}"}},
		"expired":  {freeKeys, "submission_pkey", []any{"{\\\\x00}", 1}},
		"order":    {keyHolders, "submission_pkey", []any{"{\\\\x00}"}},
		"forget":   {forgetKey, "submission_message", []any{1}},
		"cut keys": {(&pgDB{}).cutKeys(), "submission_expires", []any{1, submissionPage}},
	} {
		var join []string
		p := explain(t, s, tt.query, tt.args...)
		for _, n := range p.all() {
			join = append(join, n.Node)
			if n.Node == "Seq Scan" || n.Node == "Hash Join" || n.Node == "Merge Join" || strings.HasPrefix(n.Node, "Index") && n.Cond == "" {
				t.Errorf("%s: there is a %s of %s without a condition", name, n.Node, n.Table)
			}
		}
		if !slices.ContainsFunc(p.all(), func(n pgPlan) bool { return n.Index == tt.index }) {
			t.Errorf("%s does not use %s: %q", name, tt.index, join)
		}
	}
}

func TestTheClaimPathStaysFlatHoweverMuchWasSettled(t *testing.T) {
	t.Parallel()
	const each, cycles = 100, 60
	s := newTestFleet(t, pgtest.Shared(t)).node(t, "a")
	cycle := func() {
		var ms []*message.Message
		for range each {
			ms = append(ms, newMessage(s, message.Marketing, 500))
		}
		mustPut(t, s, false, ms...)
		ds := claimAll(t, s, "news")
		if len(ds) != each {
			t.Fatalf("claimed %d, want %d", len(ds), each)
		}
		var ss []message.Settlement
		for _, d := range ds {
			ss = append(ss, delivered(d.Message, d.Epoch)...)
		}
		if lost := must(s.Settle(t.Context(), ss)); len(lost) > 0 {
			t.Fatalf("lost %v", lost)
		}
	}
	pages := func() int {
		now := time.Now().UnixMilli()
		p := explain(t, s, pgClaimDue, "news", "", now, now, each)
		return p.Hit + p.Read
	}
	size := func() (pages int) {
		must(0, s.fleet.pool.QueryRow(t.Context(), `SELECT sum(pg_relation_size(c)) / 8192 FROM unnest(ARRAY['message', 'body', 'recipient', 'recipient_due',
			'recipient_owned', 'recipient_pkey', 'message_pkey', 'message_expires', 'body_pkey']::regclass[]) AS c`).Scan(&pages))
		return pages
	}
	for range cycles / 4 {
		cycle()
	}
	early := size()
	for range cycles * 3 / 4 {
		cycle()
	}
	eventually(t, "a claim of nothing touches few pages", func() bool { return pages() <= 40 })
	if late := size(); late > 3*early+2000 {
		t.Errorf("the tables and their indexes have %d pages after %d messages, had %d after a quarter of them", late, each*cycles, early)
	}
}
