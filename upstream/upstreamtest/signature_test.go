package upstreamtest

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// arrived makes a request as a service sees it; fields are "Name: value".
func arrived(method, url, body string, fields ...string) Request {
	host, path, _ := strings.Cut(strings.TrimPrefix(url, "https://"), "/")
	r := Request{Method: method, Path: "/" + path, Host: host, Header: http.Header{}, Body: []byte(body)}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		r.Header.Add(name, value)
	}
	return r
}

// The vectors of AWS's own test suite, and its example for S3.
func TestSigV4IsWhatAWSPublishes(t *testing.T) {
	suite := AWSKey{ID: "AKIDEXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", Region: "us-east-1", Service: "service"}
	storage := AWSKey{ID: "AKIAIOSFODNN7EXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", Region: "us-east-1", Service: "s3"}
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for name, tt := range map[string]struct {
		key       AWSKey
		method    string
		url       string
		body      string
		fields    []string
		signed    string
		signature string
	}{
		"get-vanilla": {suite, "GET", "https://example.amazonaws.com/", "", nil,
			"host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		"get-vanilla-query-order-key-case": {suite, "GET", "https://example.amazonaws.com/?Param2=value2&Param1=value1", "", nil,
			"host;x-amz-date", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
		"get-header-key-duplicate": {suite, "GET", "https://example.amazonaws.com/", "", []string{"My-Header1: value2", "My-Header1: value2", "My-Header1: value1"},
			"host;my-header1;x-amz-date", "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"},
		"post-vanilla": {suite, "POST", "https://example.amazonaws.com/", "", nil,
			"host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		"post-x-www-form-urlencoded": {suite, "POST", "https://example.amazonaws.com/", "Param1=value1", []string{"Content-Type: application/x-www-form-urlencoded"},
			"content-type;host;x-amz-date", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
		"S3 GET object": {storage, "GET", "https://examplebucket.s3.amazonaws.com/test.txt", "", []string{"Range: bytes=0-9", "X-Amz-Content-Sha256: " + empty},
			"host;range;x-amz-content-sha256;x-amz-date", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
	} {
		t.Run(name, func(t *testing.T) {
			at := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
			if tt.key.Service == "s3" {
				at = time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
			}
			credential := tt.key.ID + at.Format("/20060102/") + tt.key.Region + "/" + tt.key.Service + "/aws4_request"
			r := arrived(tt.method, tt.url, tt.body, append(tt.fields, "X-Amz-Date: "+at.Format("20060102T150405Z"),
				"Authorization: AWS4-HMAC-SHA256 Credential="+credential+", SignedHeaders="+tt.signed+", Signature="+tt.signature)...)
			if err := VerifySigV4(r, tt.key, at); err != nil {
				t.Errorf("refused: %v", err)
			}
			for what, spoil := range map[string]func(){
				"a body that was changed":  func() { r.Body = append(r.Body, ' ') },
				"another secret":           func() { tt.key.Secret += "x" },
				"another region":           func() { tt.key.Region = "eu-central-1" },
				"a clock six minutes slow": func() { at = at.Add(-6 * time.Minute) },
			} {
				was, wasAt, wasR := tt, at, r
				spoil()
				if VerifySigV4(r, tt.key, at) == nil {
					t.Errorf("it took %s", what)
				}
				tt, at, r = was, wasAt, wasR
			}
			if r.Header.Add("X-Amz-Target", "unsigned"); VerifySigV4(r, tt.key, at) == nil {
				t.Error("it took a header field that is not signed")
			}
		})
	}
}

// The vendor's worked example in "V3 request body and signature mechanism".
func TestTheAliyunSignatureIsWhatTheVendorPublishes(t *testing.T) {
	const (
		url    = "https://ecs.cn-shanghai.aliyuncs.com/?RegionId=cn-shanghai&ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd"
		keyID  = "YourAccessKeyId"
		secret = "YourAccessKeySecret"
		signed = "host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version"
	)
	at := time.Date(2023, 10, 26, 10, 22, 32, 0, time.UTC)
	good := func() Request {
		return arrived("POST", url, "", "X-Acs-Action: RunInstances", "X-Acs-Version: 2014-05-26", "X-Acs-Date: 2023-10-26T10:22:32Z",
			"X-Acs-Signature-Nonce: 3156853299f313e23d1673dc12e1703d",
			"X-Acs-Content-Sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
			"Authorization: ACS3-HMAC-SHA256 Credential="+keyID+",SignedHeaders="+signed+
				",Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0")
	}
	if err := VerifyAliyun(good(), keyID, secret, at); err != nil {
		t.Errorf("refused: %v", err)
	}
	for name, verify := range map[string]func(r Request) error{
		"another secret": func(r Request) error { return VerifyAliyun(r, keyID, "x", at) },
		"another key":    func(r Request) error { return VerifyAliyun(r, "x", secret, at) },
		"a changed body": func(r Request) error {
			r.Body = []byte("x")
			return VerifyAliyun(r, keyID, secret, at)
		},
		"a clock 16 min ahead": func(r Request) error { return VerifyAliyun(r, keyID, secret, at.Add(16*time.Minute)) },
		"another host": func(r Request) error {
			r.Host = "dm.aliyuncs.com"
			return VerifyAliyun(r, keyID, secret, at)
		},
		"an unsigned type": func(r Request) error {
			r.Header.Set("Content-Type", "text/plain")
			return VerifyAliyun(r, keyID, secret, at)
		},
	} {
		if verify(good()) == nil {
			t.Errorf("it took %s", name)
		}
	}
}
