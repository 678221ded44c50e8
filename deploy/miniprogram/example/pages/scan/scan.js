const { client } = getApp();

const REASONS = {
  no_scan_code: "这不是登录网页的二维码",
  no_route: "二维码已过期，请在网页上刷新后重新扫描",
  not_allowed: "二维码已被扫描过，请在网页上刷新后重新扫描",
  network: "网络连接失败，请稍后再试",
};

Page({
  data: { browser: "", address: "", since: "", answer: "", isBusy: false },

  // `query` has the `scene` of a Mini Program code, or the `q` of an ordinary QR code.
  onLoad(query) {
    this.code = query;
    return client.scan(query).then(
      // The user must see which browser it is before anything is confirmed.
      ({ browser, address, since }) =>
        this.setData({ browser, address, since: new Date(since).toLocaleString() }),
      (error) => this.tell(error),
    );
  },

  confirm() {
    return this.finish(client.confirmScan(this.code), "登录成功，请在网页上继续");
  },

  deny() {
    return this.finish(client.denyScan(this.code), "已取消登录");
  },

  finish(step, answer) {
    this.setData({ isBusy: true });
    return step.then(
      () => this.setData({ browser: "", answer }),
      (error) => this.tell(error),
    );
  },

  tell(error) {
    const canRepeat = error.action === "retry";
    const text = REASONS[error.error] || (canRepeat ? "请稍后再试" : "登录失败");
    const request = error.requestId ? `（请求 ID：${error.requestId}）` : "";
    this.setData({
      browser: canRepeat ? this.data.browser : "",
      answer: `${text}：${error.error}${request}`,
      isBusy: false,
    });
  },
});
