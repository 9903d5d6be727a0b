"""Mandarin words for the slots."""

from collections.abc import Mapping
from itertools import product
from typing import Final

from pipeline.data.generator.slots import Closed, Digits, Numeric, Open, Slot, listed

_DIGITS = "零一二三四五六七八九"


def spell(value: float) -> str:
    """A number from 0 to 199 in characters, with at most one decimal: 22.5 is "二十二点五"."""
    whole, tenths = divmod(round(value * 10), 10)
    hundreds, below = divmod(whole, 100)
    tens, ones = divmod(below, 10)
    if hundreds:
        text = (
            "一百"
            + (_DIGITS[tens] + "十" if tens else "零" if ones else "")
            + (_DIGITS[ones] if ones else "")
        )
    elif tens:
        text = ("" if tens == 1 else _DIGITS[tens]) + "十" + (_DIGITS[ones] if ones else "")
    else:
        text = _DIGITS[ones]
    return text + (f"点{_DIGITS[tenths]}" if tenths else "")


_SONGS = listed(
    "晴天|稻香|七里香|青花瓷|夜曲|告白气球|平凡之路|海阔天空|光辉岁月|红豆|匆匆那年|小幸运|后来|"
    "遇见|童话|江南|曹操|十年|富士山下|浮夸|孤勇者|起风了|成都|南山南|演员|体面|消愁|传奇|"
    "甜蜜蜜|月亮代表我的心|吻别|朋友|真心英雄|隐形的翅膀|阴天快乐|突然好想你|倔强|温柔|知足|"
    "龙卷风|双截棍|简单爱|安静|岁月神偷|年少有为|大海|外面的世界|橄榄树|故乡的云|一生所爱"
)
_ARTISTS = listed(
    "周杰伦|陈奕迅|林俊杰|邓紫棋|王菲|张学友|刘德华|五月天|李荣浩|薛之谦|毛不易|朴树|许巍|"
    "孙燕姿|梁静茹|蔡依林|田馥甄|李健|那英|汪峰|张惠妹|王力宏|陶喆|莫文蔚|周深|华晨宇|邓丽君|"
    "罗大佑|李宗盛|崔健|赵雷|陈绮贞|苏打绿|方大同|容祖儿|杨千嬅|Beyond|凤凰传奇|刘若英|"
    "张信哲"
)
_CONTACTS = listed(
    "妈妈|爸爸|老婆|老公|张伟|李娜|王芳|刘洋|陈静|杨帆|赵磊|黄丽|周强|吴敏|徐刚|孙悦|马超|"
    "朱琳|胡军|郭敏|林涛|何洁|高峰|罗兰|郑凯|谢娜|韩梅梅|李雷|唐经理|张老师|王医生|李总|小明|"
    "小红|阿杰|大伯|姑姑|奶奶|爷爷|外婆|表哥|姐姐|弟弟|老板|物业|刘师傅|陈阿姨|赵叔叔|小周|"
    "客服"
)
_MESSAGES = listed(
    "我马上到|我晚点到|今晚不回家吃饭|路上堵车|会议改到明天|记得带伞|我在楼下等你|帮我买牛奶|"
    "生日快乐|我已经出发了|到家给我打电话|明天见|我还有十分钟到|孩子接到了|钥匙在桌上|晚饭七点开始|"
    "快递到了|别等我了|我忘带钱包了|一会儿再联系|车停在地下二层|谢谢你的帮助|航班晚点了|周末一起爬山|"
    "我在开车|先吃饭吧|我找到停车位了|票已经订好了|今天加班|一路平安"
)
_AREAS = listed("人民|中山|解放|南京|北京|长安|和平|建设|文化|新华|滨江|朝阳|东方|西湖|花园")
_KINDS = listed("路|公园|广场|医院|小学|地铁站|酒店|商场")
_LANDMARKS = listed(
    "天安门|首都机场|虹桥火车站|外滩|西湖|公司|家|颐和园|东方明珠|广州塔|深圳北站|浦东机场|故宫|"
    "奥体中心|清华大学|北京大学|南锣鼓巷|宽窄巷子|大雁塔|黄鹤楼|鼓浪屿|陆家嘴|中关村|国家图书馆|"
    "科技馆|动物园|滨海新区|杭州东站|武汉大学|我爸妈家"
)
_PLACES = tuple(f"{area}{kind}" for kind, area in product(_KINDS, _AREAS))

SLOTS: Final[Mapping[str, Slot]] = {
    # temperature and air
    "celsius": Numeric(tuple(range(32, 61, 2)) * 3 + tuple(range(33, 60, 2)), spell, unit=0.5),
    "zone": Closed(
        {
            "driver": ("主驾", "主驾驶", "驾驶位", "左边"),
            "passenger": ("副驾", "副驾驶", "右边"),
            "rear": ("后排", "后座", "后面"),
            "all": ("全车", "整个车里", "所有座位"),
        }
    ),
    "person": Closed({"passenger": ("副驾的人", "坐副驾的"), "rear": ("后排的人", "坐后面的", "后排乘客")}),
    "warmer": Closed({"warmer": ("暖和", "热"), "cooler": ("凉快", "冷")}),
    "raise": Closed({"warmer": ("调高", "升高", "提高"), "cooler": ("调低", "降低")}),
    "feel": Closed({"warmer": ("冷", "凉"), "cooler": ("热", "闷热")}),
    "fan_level": Numeric(tuple(range(1, 8)), spell),
    "fan_extreme": Closed({7: ("最大", "最高"), 1: ("最小", "最低")}),
    # switches
    "switch": Closed({True: ("打开", "开启", "开一下"), False: ("关闭", "关掉", "关一下")}),
    "state": Closed({True: ("打开", "开起来", "开着"), False: ("关掉", "关上", "关了")}),
    "want": Closed({True: ("我要", "我想要", "我需要"), False: ("我不要", "我不需要", "不用")}),
    "pane": Closed({"front": ("前挡风玻璃", "前挡", "前窗"), "rear": ("后挡风玻璃", "后挡", "后窗")}),
    # windows
    "window": Closed(
        {
            "driver": ("主驾车窗", "主驾驶窗户", "我的车窗"),
            "passenger": ("副驾车窗", "副驾驶窗户"),
            "rear_left": ("左后车窗", "左后窗户"),
            "rear_right": ("右后车窗", "右后窗户"),
            "all": ("所有车窗", "全部车窗", "所有窗户"),
        }
    ),
    "percent": Numeric(tuple(range(5, 100, 5)), spell),
    "open_all": Closed({100: ("打开", "开到最大"), 0: ("关上", "关闭", "关好")}),
    "open_verb": Closed({100: ("打开", "开一下"), 0: ("关上", "关闭", "关一下")}),
    "open_part": Closed({50: ("一半",), 25: ("四分之一",), 75: ("四分之三",)}),
    "wiper_mode": Closed(
        {
            "slow": ("慢速", "低速"),
            "fast": ("快速", "高速"),
            "interval": ("间歇", "间歇模式"),
            "auto": ("自动", "自动模式"),
        }
    ),
    "trunk_verb": Closed({True: ("打开", "开一下"), False: ("关上", "关闭", "关一下")}),
    # seats
    "seat": Closed(
        {
            "driver": ("主驾座椅", "我的座椅", "驾驶座"),
            "passenger": ("副驾座椅", "副驾驶座椅"),
            "rear_left": ("左后座椅", "后排左边座椅"),
            "rear_right": ("右后座椅", "后排右边座椅"),
        }
    ),
    "heat_level": Closed(
        {1: ("1档", "一档", "低档"), 2: ("2档", "二档", "中档"), 3: ("3档", "三档", "高档")}
    ),
    "seat_way": Closed(
        {
            "forward": ("往前", "向前", "朝前"),
            "backward": ("往后", "向后", "朝后"),
            "up": ("往上", "向上", "朝上"),
            "down": ("往下", "向下", "朝下"),
        }
    ),
    "lift": Closed({"up": ("升高", "调高"), "down": ("降低", "调低")}),
    "offset": Closed(
        {"up": ("太低", "太矮"), "down": ("太高",), "forward": ("太靠后",), "backward": ("太靠前",)}
    ),
    "memory": Closed({1: ("1", "一"), 2: ("2", "二"), 3: ("3", "三")}),
    # media
    "song": Open(_SONGS),
    "artist": Open(_ARTISTS),
    "mhz": Numeric(tuple(tick for tick in range(876, 1080) if tick % 10), spell, unit=0.1),
    "pause": Closed({"pause": ("暂停", "停一下"), "resume": ("继续", "接着")}),
    "next": Closed({"next": ("下一首", "下首"), "previous": ("上一首", "上首")}),
    "volume": Numeric(tuple(range(0, 101)), spell),
    "volume_extreme": Closed({100: ("最大", "最高"), 0: ("最小", "零"), 50: ("一半",)}),
    "louder": Closed({"up": ("大", "响"), "down": ("小", "轻")}),
    "volume_verb": Closed({"up": ("调大", "调高", "增大"), "down": ("调小", "调低", "减小")}),
    "loud": Closed({"down": ("太吵", "太大", "太响"), "up": ("太小", "太轻")}),
    "source": Closed(
        {
            "radio": ("收音机", "广播", "电台"),
            "bluetooth": ("蓝牙", "蓝牙音乐", "手机蓝牙"),
            "usb": ("U盘", "USB"),
            "podcast": ("播客",),
        }
    ),
    # navigation
    "place": Open(_LANDMARKS + _PLACES),
    "category": Closed(
        {
            "gas_station": ("加油站",),
            "charging_station": ("充电站", "充电桩"),
            "parking": ("停车场", "停车位"),
            "restaurant": ("餐厅", "饭店", "餐馆"),
            "cafe": ("咖啡店", "咖啡馆"),
            "hospital": ("医院", "急诊"),
            "supermarket": ("超市",),
        }
    ),
    "errand": Closed(
        {
            "gas_station": ("加油", "加点油"),
            "charging_station": ("充电", "给车充电"),
            "parking": ("停车", "停一下车"),
            "restaurant": ("吃饭", "吃点东西"),
            "cafe": ("喝咖啡", "喝杯咖啡"),
            "hospital": ("看医生", "看病"),
            "supermarket": ("买菜", "买点日用品"),
        }
    ),
    "avoid": Closed(
        {
            "tolls": ("收费路段", "收费站", "收费公路"),
            "highways": ("高速", "高速公路"),
            "ferries": ("轮渡", "渡轮"),
        }
    ),
    # phone
    "contact": Open(_CONTACTS),
    "digits": Digits((7, 8, 11)),
    "message": Open(_MESSAGES),
    "answer": Closed(
        {"answer": ("接听", "接", "接起"), "reject": ("拒接", "拒绝"), "hang_up": ("挂断", "挂掉", "结束")}
    ),
    # lights
    "beam": Closed({"high": ("远光灯", "远光"), "low": ("近光灯", "近光")}),
    "beam_mode": Closed({"high": ("远光",), "low": ("近光",), "auto": ("自动", "自动模式")}),
    "color": Closed(
        {
            "red": ("红色",),
            "blue": ("蓝色",),
            "green": ("绿色",),
            "white": ("白色",),
            "purple": ("紫色",),
            "orange": ("橙色", "橘色"),
        }
    ),
    # driving
    "mode": Closed(
        {"eco": ("经济", "节能"), "comfort": ("舒适",), "sport": ("运动",), "snow": ("雪地", "冰雪")}
    ),
    "kmh": Numeric(tuple(range(30, 151, 5)) * 2 + tuple(range(31, 150)), spell),
    # status
    "reading": Closed(
        {
            "battery": ("电量", "电池电量", "剩余电量"),
            "fuel": ("油量", "剩余油量"),
            "range": ("续航", "续航里程", "剩余里程"),
            "mileage": ("总里程", "行驶总里程"),
            "oil": ("机油", "机油液位"),
            "outside_temperature": ("车外温度", "外面的温度", "室外温度"),
        }
    ),
    "question": Closed(
        {
            "battery": ("还有多少电", "电还剩多少"),
            "fuel": ("还有多少油", "油还剩多少"),
            "range": ("还能跑多远", "还能开多少公里"),
            "mileage": ("这车一共跑了多少公里", "总共开了多少公里"),
            "oil": ("机油还够吗", "机油还剩多少"),
            "outside_temperature": ("外面多少度", "车外几度"),
        }
    ),
    "wheel": Closed(
        {
            "front_left": ("左前轮", "左前轮胎"),
            "front_right": ("右前轮", "右前轮胎"),
            "rear_left": ("左后轮", "左后轮胎"),
            "rear_right": ("右后轮", "右后轮胎"),
            "all": ("所有轮胎", "四个轮胎", "全部轮胎"),
        }
    ),
    # requests that no function serves
    "unsupported": Closed(
        {
            None: (
                "手套箱",
                "油箱盖",
                "引擎盖",
                "后视镜",
                "车库门",
                "行车记录仪",
                "冰箱",
                "扫地机器人",
                "洗衣机",
                "电视",
                "烤箱",
                "台灯",
            )
        }
    ),
    "topic": Closed(
        {None: ("股票", "足球", "历史", "人工智能", "恐龙", "电影", "明天的天气", "新闻", "诗词", "黑洞")}
    ),
    "goods": Closed(
        {None: ("披萨", "外卖", "鲜花", "电影票", "机票", "酒店", "一杯奶茶", "新手机", "火车票", "蛋糕")}
    ),
    "chore": Closed(
        {None: ("写作业", "写邮件", "洗车", "浇花", "遛狗", "交电费", "翻译一段话", "定闹钟", "做饭", "拍照")}
    ),
}
