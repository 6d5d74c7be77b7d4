package upstream

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// The vendor's worked example in "V3 request body and signature mechanism".
func TestAliyunSignatureIsWhatTheVendorPublishes(t *testing.T) {
	const (
		url  = "https://ecs.cn-shanghai.aliyuncs.com/?ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd&RegionId=cn-shanghai"
		want = "ACS3-HMAC-SHA256 Credential=YourAccessKeyId," +
			"SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version," +
			"Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
	)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	call := aliyunCall{
		action: "RunInstances", version: "2014-05-26", nonce: "3156853299f313e23d1673dc12e1703d",
		at: time.Date(2023, 10, 26, 10, 22, 32, 0, time.UTC),
	}
	call.sign(r, nil, "YourAccessKeyId", "YourAccessKeySecret")
	if got := r.Header.Get("Authorization"); got != want {
		t.Errorf("signed\n%s\nwant\n%s", got, want)
	}
}

func TestAnAliyunQueryIsSignedWithoutPlusSigns(t *testing.T) {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://dm.aliyuncs.com?b=%7E*&a=x+y%2Fz", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := aliyunCanonical(r)
	if want := "GET\n/\na=x%20y%2Fz&b=~%2A\nhost:dm.aliyuncs.com\n"; !strings.HasPrefix(text, want) {
		t.Errorf("signs %q, want it to begin with %q", text, want)
	}
}
