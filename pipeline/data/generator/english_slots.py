"""English words for the slots."""

from collections.abc import Mapping
from itertools import product
from typing import Final

from pipeline.data.generator.slots import Closed, Digits, Numeric, Open, Slot, listed

_ONES = listed(
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    "sixteen|seventeen|eighteen|nineteen"
)
_TENS = listed("_|_|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety")


def spell(value: float) -> str:
    """A number from 0 to 199 in words, with at most one decimal: 22.5 is "twenty two point five"."""
    whole, tenths = divmod(round(value * 10), 10)
    hundreds, below = divmod(whole, 100)
    words = []
    if hundreds:
        words.append("one hundred")
    if below >= 20:
        words.append(_TENS[below // 10])
        below %= 10
        words += [_ONES[below]] if below else []
    elif below or not hundreds:
        words.append(_ONES[below])
    return " ".join(words + ([f"point {_ONES[tenths]}"] if tenths else []))


_SONGS = listed(
    "Yellow|Bohemian Rhapsody|Hotel California|Blinding Lights|Dancing Queen|Wonderwall|Clocks|Hey Jude|"
    "Africa|Sweet Caroline|Purple Rain|Heroes|Dreams|Imagine|Billie Jean|Rolling in the Deep|Take on Me|"
    "Levitating|Smooth Operator|Viva la Vida|Shallow|Thunder Road|Fast Car|Ocean Eyes|Bad Guy|Halo|"
    "Royals|Jolene|Hurt|Space Oddity|Creep|Karma Police|Lovely Day|Autumn Leaves|Moon River|"
    "Fly Me to the Moon|Blackbird|Here Comes the Sun|Mr. Brightside|Riders on the Storm|Paint It Black|"
    "Superstition|Landslide|Stay|Born to Run|Free Fallin|Uptown Girl|Valerie|Rehab|Back to Black|"
    "Skinny Love|Midnight City|Electric Feel|Golden Brown|Enjoy the Silence|Under Pressure|Starman|"
    "Waterloo|Fernando|Let It Be|Yesterday|Something|Summer Wine|Country Roads|Ring of Fire|Lean on Me|"
    "Stand by Me|Respect|Black Velvet|Torn|Zombie|Linger|Iris|Drops of Jupiter|Chasing Cars|Run|Fix You|"
    "The Scientist|Sparks|Teardrop|Glory Box|Feeling Good|Four Seasons|Moonlight Sonata|Clair de Lune|"
    "Bolero|Nightswimming|Losing My Religion|Harvest Moon|Wish You Were Here"
)
_ARTISTS = listed(
    "Coldplay|Adele|Queen|The Beatles|Taylor Swift|Drake|Radiohead|Billie Eilish|Daft Punk|Fleetwood Mac|"
    "Ed Sheeran|Norah Jones|Miles Davis|Pink Floyd|Elton John|David Bowie|Amy Winehouse|Kendrick Lamar|"
    "Dua Lipa|Bob Dylan|Johnny Cash|Nina Simone|The Cure|Arctic Monkeys|Muse|Oasis|Blur|Rihanna|"
    "Bruno Mars|Stevie Wonder|Hans Zimmer|Ludovico Einaudi|Frank Sinatra|Ella Fitzgerald|"
    "Bruce Springsteen|Metallica|Nirvana|Pearl Jam|The Weeknd|Lana Del Rey|Hozier|Tracy Chapman|"
    "Dolly Parton|Sade|Massive Attack|Portishead|Bon Iver|Tame Impala|ABBA|Simon and Garfunkel|"
    "The Rolling Stones|Van Morrison|Joni Mitchell|Neil Young|Eagles|Genesis|Toto|Kraftwerk|Gorillaz|"
    "Lorde|Sia|Shakira|Imagine Dragons|Maroon 5|Linkin Park|Green Day|U2|Depeche Mode|Talking Heads|"
    "Prince"
)
_CONTACTS = listed(
    "Anna|Mum|Dad|David Miller|Sarah|my wife|my husband|Tom Becker|Julia|Dr. Patel|Grandma|my boss|"
    "Michael|Emma Stone|Peter|Lucy|the office|Uncle Jim|Aunt Carol|Daniel Kim|Sophie|Maria Lopez|"
    "my brother|my sister|Alex|Chris Evans|Nina|Oliver|the dentist|Robert Chen|Laura|Jack|Mr. Thompson|"
    "Mrs. Garcia|Ben|Priya|Fatima|Yuki|Hannah|Lars|Ingrid|Marco|Elena|Ivan|Katie|the babysitter|Steve|"
    "Rachel Green|Sam|Omar|Paul|Megan|Victor|Grace|Henry|Isabel|Leo|Amelia|Noah|Olivia|the mechanic|"
    "Kevin|Zoe|George|Claire|Felix|Nadia|Hugo|Alice|Martin|Grandpa|my mother|Coach Williams|Jenny|Theo|"
    "Carmen|Ravi|Mei|Dmitri|Aunt Rosa"
)
_STREETS = listed(
    "Maple|Oak|Victoria|Riverside|Station|Church|Highland|Lincoln|Market|Sunset|Harbour|Mill|Cedar|King|"
    "Queen|Garden|Lakeview|Hillcrest|Baker|Franklin|Chestnut|Willow"
)
_KINDS = listed("Street|Avenue|Road|Park|Mall|Hospital|School|Station|Square|Hotel")
_LANDMARKS = listed(
    "Berlin|the airport|Central Station|Munich|Heathrow Airport|the city center|Oxford|Times Square|"
    "the Louvre|Lake Como|Zurich|the train station|Golden Gate Bridge|Prague|the stadium|Cambridge|"
    "Union Square|the zoo|Salzburg|Brighton Beach|the town hall|Hamburg|Edinburgh Castle|Vienna|"
    "the office|home|work|my parents' house|the old bakery|Lyon|Mount Vernon|the science museum|Boston|"
    "Lake Tahoe|the opera house|Bath|the post office|Seville|the university|Gate 4 parking|"
    "Hyde Park Corner|Ikea|the botanical garden|Antwerp|Fisherman's Wharf"
)
_PLACES = tuple(f"{name} {kind}" for kind, name in product(_KINDS, _STREETS))
_MESSAGES = listed(
    "I'm running late|I'll be there in ten minutes|dinner is at seven|I left the keys on the table|"
    "see you tomorrow|I'm on my way|please pick up the kids|the meeting is moved to Monday|call me back|"
    "I love you|happy birthday|I'm stuck in traffic|we need milk|I just left the office|"
    "don't wait for me|the train is delayed|I'm almost home|thanks for the help|I forgot my wallet|"
    "meet me at the entrance|I can't make it tonight|the package has arrived|I'll call you later|"
    "bring an umbrella|we are at the restaurant|the game starts at eight|good luck today|"
    "I found a parking spot|start without me|can you feed the cat|I'm ten minutes away|"
    "the doctor said it's fine|leave the door unlocked|I'm driving right now|lunch is on me|"
    "sorry about yesterday|we won the match|pick me up at five|the flight lands at noon|"
    "I'll bring the cake|turn off the oven|take your time|I'm waiting outside|the tickets are booked|"
    "let's meet on Friday|I have good news|are you coming|where are you|do you need anything|"
    "how was your day"
)

SLOTS: Final[Mapping[str, Slot]] = {
    # temperature and air
    "celsius": Numeric(tuple(range(32, 61, 2)) * 3 + tuple(range(33, 60, 2)), spell, unit=0.5),
    "zone_noun": Closed(
        {
            "driver": ("driver side", "driver's side", "left side"),
            "passenger": ("passenger side", "passenger's side", "right side"),
            "rear": ("rear", "back row", "back"),
            "all": ("whole car", "entire cabin", "whole cabin"),
        }
    ),
    "zone_place": Closed(
        {
            "driver": ("on the driver side", "on my side", "for the driver", "on the left"),
            "passenger": ("on the passenger side", "for the passenger", "for my passenger", "on the right"),
            "rear": ("in the back", "in the rear", "for the back row", "in the back seats"),
            "all": ("everywhere", "in the whole car", "in the entire cabin", "for everyone"),
        }
    ),
    "zone_person": Closed(
        {
            "passenger": ("my passenger", "the passenger", "the person next to me"),
            "rear": ("everyone in the back", "the back row", "the rear passengers"),
        }
    ),
    "warmer": Closed({"warmer": ("warmer", "hotter"), "cooler": ("cooler", "colder")}),
    "warm_verb": Closed({"warmer": ("warm up", "heat up"), "cooler": ("cool down", "chill")}),
    "raise": Closed({"warmer": ("raise", "increase", "turn up"), "cooler": ("lower", "reduce", "turn down")}),
    "feel": Closed(
        {
            "warmer": ("cold", "freezing", "chilly", "too cold"),
            "cooler": ("hot", "boiling", "sweating", "too hot", "too warm"),
        }
    ),
    "fan_level": Numeric(tuple(range(1, 8)), spell),
    "fan_extreme": Closed({7: ("maximum", "full", "top"), 1: ("minimum", "lowest")}),
    # switches
    "on": Closed({True: ("on",), False: ("off",)}),
    "switch": Closed(
        {
            True: ("turn on", "switch on", "activate", "enable", "start"),
            False: ("turn off", "switch off", "deactivate", "disable", "stop"),
        }
    ),
    "want": Closed(
        {True: ("I want", "I need", "give me"), False: ("I don't want", "I don't need", "no more")}
    ),
    "outside_air": Closed(
        {
            True: ("keep outside air out", "block outside air", "stop outside air from coming in"),
            False: ("let some fresh air in", "let outside air in", "get some fresh air in here"),
        }
    ),
    "fresh_air": Closed({False: ("let some fresh air in", "we need fresh air", "I need some fresh air")}),
    "open_verb": Closed({True: ("open", "pop", "unlatch"), False: ("close", "shut")}),
    "open_state": Closed({True: ("open", "opened"), False: ("closed", "shut")}),
    "pane": Closed(
        {
            "front": ("windshield", "front window", "front windscreen"),
            "rear": ("rear window", "back window", "rear windscreen"),
        }
    ),
    "front": Closed({"front": ("front",), "rear": ("rear", "back")}),
    # windows
    "window": Closed(
        {
            "driver": ("my window", "the driver window", "the driver's window"),
            "passenger": ("the passenger window", "the passenger's window", "the passenger side window"),
            "rear_left": ("the left rear window", "the rear left window", "the back left window"),
            "rear_right": ("the right rear window", "the rear right window", "the back right window"),
            "all": ("all windows", "all the windows", "every window"),
        }
    ),
    "percent": Numeric(tuple(range(5, 100, 5)), spell),
    "open_all": Closed({100: ("open", "roll down", "lower"), 0: ("close", "roll up", "shut")}),
    "open_part": Closed({50: ("halfway", "half way"), 25: ("a quarter",), 75: ("three quarters",)}),
    "open_full": Closed(
        {100: ("fully open", "wide open", "all the way open"), 0: ("fully closed", "shut", "closed")}
    ),
    "roof_all": Closed({100: ("open", "slide open"), 0: ("close", "shut", "slide shut")}),
    "wiper_speed": Closed(
        {"slow": ("slow", "low"), "fast": ("fast", "high"), "interval": ("interval", "intermittent")}
    ),
    "wiper_mode": Closed(
        {
            "slow": ("slow", "low speed"),
            "fast": ("fast", "full speed", "high speed"),
            "interval": ("interval", "intermittent"),
            "auto": ("automatic", "auto"),
            "off": ("off",),
        }
    ),
    # seats
    "seat": Closed(
        {
            "driver": ("my seat", "the driver seat", "the driver's seat"),
            "passenger": ("the passenger seat", "the passenger's seat", "the front passenger seat"),
            "rear_left": ("the left rear seat", "the rear left seat", "the back left seat"),
            "rear_right": ("the right rear seat", "the rear right seat", "the back right seat"),
        }
    ),
    "seat_level": Closed(
        {
            0: ("off", "zero", "0"),
            1: ("low", "level 1", "level one", "1"),
            2: ("medium", "level 2", "level two", "2"),
            3: ("high", "level 3", "level three", "maximum", "3"),
        }
    ),
    "heat_level": Closed({1: ("low", "1", "one"), 2: ("medium", "2", "two"), 3: ("high", "3", "three")}),
    "seat_way": Closed(
        {
            "forward": ("forward", "to the front", "forwards"),
            "backward": ("back", "backward", "backwards"),
            "up": ("up", "higher", "upwards"),
            "down": ("down", "lower", "downwards"),
        }
    ),
    "lift": Closed({"up": ("raise", "lift"), "down": ("lower", "drop")}),
    "slide": Closed({"forward": ("forward", "forwards"), "backward": ("back", "backwards", "backward")}),
    "low_high": Closed({"up": ("too low",), "down": ("too high",)}),
    "close_far": Closed(
        {"forward": ("too far back", "too far away"), "backward": ("too far forward", "too close")}
    ),
    "memory": Closed({1: ("one", "1"), 2: ("two", "2"), 3: ("three", "3")}),
    "memory_ordinal": Closed({1: ("first",), 2: ("second",), 3: ("third",)}),
    # media
    "song": Open(_SONGS),
    "artist": Open(_ARTISTS),
    "mhz": Numeric(tuple(tick for tick in range(876, 1080) if tick % 10), spell, unit=0.1),
    "pause": Closed({"pause": ("pause", "hold"), "resume": ("resume", "continue", "unpause")}),
    "next": Closed({"next": ("next", "following"), "previous": ("previous", "last")}),
    "player": Closed(
        {
            "pause": ("pause the music", "pause this song", "stop the music", "pause playback"),
            "resume": ("resume the music", "continue the music", "keep playing", "resume playback"),
            "next": ("skip this song", "skip this track", "play the next song", "go to the next track"),
            "previous": ("play the previous song", "go back one song", "go to the previous track"),
        }
    ),
    "volume": Numeric(tuple(range(0, 101)), spell),
    "volume_extreme": Closed({100: ("maximum", "full", "max"), 50: ("half",), 0: ("zero", "minimum")}),
    "louder": Closed({"up": ("louder",), "down": ("quieter", "softer")}),
    "volume_verb": Closed(
        {
            "up": ("turn up", "raise", "increase", "crank up"),
            "down": ("turn down", "lower", "reduce", "bring down"),
        }
    ),
    "loud": Closed(
        {"down": ("too loud", "so loud", "deafening"), "up": ("too quiet", "so quiet", "hard to hear")}
    ),
    "up_down": Closed({"up": ("up",), "down": ("down",)}),
    "source": Closed(
        {
            "radio": ("the radio", "radio", "FM radio"),
            "bluetooth": ("bluetooth", "my phone over bluetooth", "bluetooth audio"),
            "usb": ("usb", "the usb stick", "the usb drive"),
            "podcast": ("podcasts", "my podcasts", "the podcast app"),
        }
    ),
    # navigation
    "place": Open(_LANDMARKS + _PLACES),
    "category": Closed(
        {
            "gas_station": ("gas station", "petrol station", "fuel station"),
            "charging_station": ("charging station", "charger", "charging point"),
            "parking": ("parking lot", "car park", "parking garage"),
            "restaurant": ("restaurant", "place to eat"),
            "cafe": ("cafe", "coffee shop"),
            "hospital": ("hospital", "emergency room"),
            "supermarket": ("supermarket", "grocery store"),
        }
    ),
    "need": Closed(
        {
            "gas_station": ("some gas", "to refuel", "petrol", "to fill up the tank"),
            "charging_station": ("to charge the car", "to recharge", "to charge the battery"),
            "parking": ("to park", "to park the car", "a parking spot"),
            "restaurant": ("something to eat", "lunch", "dinner", "a meal"),
            "cafe": ("a coffee", "an espresso", "a cup of coffee"),
            "hospital": ("a doctor", "a hospital", "medical help"),
            "supermarket": ("groceries", "to buy groceries", "to buy some food"),
        }
    ),
    "errand": Closed(
        {
            "gas_station": ("gas", "petrol", "fuel"),
            "charging_station": ("a charge", "charging the car", "recharging the battery"),
            "parking": ("parking", "a parking spot"),
            "restaurant": ("lunch", "dinner", "a meal", "something to eat"),
            "cafe": ("coffee", "a coffee", "an espresso"),
            "hospital": ("medical help", "a doctor"),
            "supermarket": ("groceries", "grocery shopping"),
        }
    ),
    "categories": Closed(
        {
            "gas_station": ("gas stations", "petrol stations", "fuel stations"),
            "charging_station": ("charging stations", "chargers", "charging points"),
            "parking": ("parking lots", "car parks", "parking garages"),
            "restaurant": ("restaurants", "places to eat"),
            "cafe": ("cafes", "coffee shops"),
            "hospital": ("hospitals", "emergency rooms"),
            "supermarket": ("supermarkets", "grocery stores"),
        }
    ),
    "avoid": Closed(
        {
            "tolls": ("toll roads", "tolls", "toll booths"),
            "highways": ("highways", "freeways", "motorways"),
            "ferries": ("ferries", "ferry boats", "ferry crossings"),
        }
    ),
    # phone
    "contact": Open(_CONTACTS),
    "digits": Digits((6, 7, 8)),
    "message": Open(_MESSAGES),
    "phone_action": Closed(
        {
            "answer": ("answer the call", "take the call", "pick up the phone", "accept the call"),
            "reject": ("reject the call", "decline the call", "refuse the call", "ignore the call"),
            "hang_up": ("end the call", "hang up", "finish the call", "hang up the phone"),
        }
    ),
    # lights
    "headlights": Closed({"low": ("on",), "off": ("off",)}),
    "beam": Closed(
        {"high": ("high beams", "high beam", "full beam"), "low": ("low beams", "low beam", "dipped beam")}
    ),
    "beam_mode": Closed(
        {
            "high": ("high beam", "full beam"),
            "low": ("low beam", "dipped beam"),
            "auto": ("automatic", "auto"),
            "off": ("off",),
        }
    ),
    "color": Closed(
        {
            "red": ("red",),
            "blue": ("blue",),
            "green": ("green",),
            "white": ("white",),
            "purple": ("purple", "violet"),
            "orange": ("orange",),
        }
    ),
    # driving
    "mode": Closed(
        {
            "eco": ("eco", "economy"),
            "comfort": ("comfort",),
            "sport": ("sport", "sports"),
            "snow": ("snow", "winter"),
        }
    ),
    "drive_style": Closed(
        {
            "eco": ("save energy", "save fuel", "drive economically"),
            "comfort": ("drive comfortably", "have a comfortable ride", "ride more softly"),
            "sport": ("drive sportily", "have a sporty ride", "drive more aggressively"),
            "snow": ("drive on snow", "drive through snow", "drive on icy roads"),
        }
    ),
    "kmh": Numeric(tuple(range(30, 151, 5)) * 2 + tuple(range(31, 150)), spell),
    # status
    "reading": Closed(
        {
            "battery": ("battery level", "battery charge", "state of charge"),
            "fuel": ("fuel level", "amount of fuel", "gas level"),
            "range": ("range", "remaining range", "driving range"),
            "mileage": ("mileage", "odometer reading", "total mileage"),
            "oil": ("oil level", "engine oil level"),
            "outside_temperature": ("outside temperature", "temperature outside", "outdoor temperature"),
        }
    ),
    "status_question": Closed(
        {
            "battery": (
                "how much battery do we have left",
                "how full is the battery",
                "how much charge is left",
            ),
            "fuel": ("how much fuel do we have left", "how full is the tank", "how much gas is left"),
            "range": (
                "how far can we still drive",
                "how many kilometers can we still go",
                "how far can I get",
            ),
            "mileage": ("how many kilometers has this car done", "how many miles are on this car"),
            "oil": ("is there enough oil", "how much oil is in the engine", "do we need oil"),
            "outside_temperature": (
                "how cold is it outside",
                "how warm is it outside",
                "how hot is it out there",
            ),
        }
    ),
    "wheel": Closed(
        {
            "front_left": ("front left tire", "left front tire"),
            "front_right": ("front right tire", "right front tire"),
            "rear_left": ("rear left tire", "left rear tire", "back left tire"),
            "rear_right": ("rear right tire", "right rear tire", "back right tire"),
        }
    ),
    # requests that no function serves
    "unsupported_part": Closed(
        {
            None: (
                "glove box",
                "fuel cap",
                "hood",
                "side mirrors",
                "garage door",
                "dash cam",
                "alarm",
                "fridge",
                "cup holder",
                "seat belt",
                "tow hook",
                "roof rack",
                "fog machine",
                "spare wheel",
                "engine",
            )
        }
    ),
    "unsupported_device": Closed(
        {
            None: (
                "coffee machine",
                "television",
                "oven",
                "washing machine",
                "dash cam",
                "sprinkler",
                "robot vacuum",
                "projector",
                "printer",
                "vacuum cleaner",
                "heater at home",
                "kitchen light",
                "alarm at home",
            )
        }
    ),
    "topic": Closed(
        {
            None: (
                "the stock market",
                "football",
                "the election",
                "black holes",
                "the Roman Empire",
                "cooking",
                "electric cars",
                "the news",
                "history",
                "the weather tomorrow",
                "dinosaurs",
                "politics",
                "chess",
            )
        }
    ),
    "goods": Closed(
        {
            None: (
                "a pizza",
                "flowers",
                "two tickets",
                "new shoes",
                "a table for four",
                "a hotel room",
                "a taxi",
                "sushi",
                "a flight to Rome",
                "a new phone",
                "a birthday present",
                "concert tickets",
            )
        }
    ),
    "fact": Closed(
        {
            None: (
                "the capital of Peru",
                "the tallest mountain",
                "the meaning of life",
                "the square root of nine",
                "the population of China",
                "the speed of light",
                "the president's name",
                "today's date",
                "the exchange rate",
                "the winner of the match",
            )
        }
    ),
    "chore": Closed(
        {
            None: (
                "do my homework",
                "write an email",
                "clean the car",
                "water the plants",
                "walk the dog",
                "pay the bill",
                "translate a letter",
                "set an alarm",
                "cook dinner",
                "book an appointment",
                "solve a riddle",
                "take a photo",
                "add milk to my shopping list",
                "update my calendar",
            )
        }
    ),
}
